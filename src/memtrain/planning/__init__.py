"""What a run needs, before it is paid for: tokens, arithmetic, memory, hours, energy. No torch at the top."""
