"""Benchmarks: each peer and we through the same work in one process (``memtrain bench``, see ``benchmarks/``)."""
