"""memtrain: teach a language model to keep a bounded notebook, from unlabelled text alone."""

__version__ = "0.1.0"
