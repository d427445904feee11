"""A trained model for others: a plain Hugging Face folder with a card, GGUF, the hub."""
