"""Several workers on one run: who starts them, and where they meet."""
