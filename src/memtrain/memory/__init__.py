"""The memory agents: ordinary code that awaits a model. No torch in here."""
