"""Training or held-out: decided by the title of a page alone."""

from __future__ import annotations

import hashlib
from typing import Literal

Side = Literal["train", "held_out"]


def side_of(name: str, held_out: float) -> Side:
    """The side of all passages of this title (or page key, where it has none); ``held_out``: share of the titles."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "held_out" if share < held_out else "train"
