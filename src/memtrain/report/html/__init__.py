"""One HTML file about one or several runs, which needs nothing but itself: ``memtrain report``."""
