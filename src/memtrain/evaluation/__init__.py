"""Metrics, statistics and evaluation suites."""
