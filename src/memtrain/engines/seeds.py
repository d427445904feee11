"""Randomness that belongs to a request, not to the batch it runs in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any


class Seeds:
    """A seed for every request from one text: by the prompt and how often it was asked, not by when.

    Episodes that run at the same time may ask in any order; their draws stay the same.
    """

    def __init__(self, text: str):
        self.text = text
        self._asked: dict[str, int] = {}

    def draw(self, prompt_ids: Sequence[int]) -> int:
        """The next seed of a prompt, in [0, 2**63)."""
        prompt = hashlib.sha256(repr(tuple(prompt_ids)).encode()).hexdigest()
        number = self._asked.get(prompt, 0)
        self._asked[prompt] = number + 1
        digest = hashlib.sha256(f"{self.text}/{prompt}/{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` takes; JSON."""
        return {"text": self.text, "asked": self._asked}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Seeds:
        """Go on where :meth:`state` was taken."""
        seeds = cls(str(state["text"]))
        seeds._asked = {str(prompt): int(number) for prompt, number in state["asked"].items()}
        return seeds
