"""Engines: what turns token ids into token ids, and rows into a weight update."""
