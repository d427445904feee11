"""The answer in a reply: what stands in its last box (MemTrain section 3, released code)."""

from __future__ import annotations

TAIL_CHARS = 300
"""How far from the end of the reply a box may open."""
BOX = "\\boxed{"


def last_boxed(text: str) -> str | None:
    """Content of the last balanced ``\\boxed{...}`` in the last 300 characters, or None."""
    tail = text[-TAIL_CHARS:]
    place = tail.rfind(BOX)
    while place >= 0:
        start, depth = place + len(BOX), 1
        for end in range(start, len(tail)):
            depth += {"{": 1, "}": -1}.get(tail[end], 0)
            if depth == 0:
                return tail[start:end]
        place = tail.rfind(BOX, 0, place)  # this one never closes: an earlier one may
    return None
