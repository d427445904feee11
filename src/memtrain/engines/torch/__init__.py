"""The in-process engine on PyTorch."""
