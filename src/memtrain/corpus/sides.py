"""Training or held-out: decided by the title of a page alone."""

from __future__ import annotations

import hashlib

from memtrain.corpus.store import Split


def side_of(name: str, held_out: float) -> Split:
    """The side of all passages of this title (or page key, where it has none); ``held_out``: share of the titles."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "held_out" if share < held_out else "train"
