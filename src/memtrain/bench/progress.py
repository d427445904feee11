"""How a benchmark says what it is doing and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _nothing(*told: object) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Progress:
    """Called with a few words on what begins now; ``count`` moves a bar with the time left."""

    say: Callable[[str], None] = _nothing
    bar: Callable[[str, int, int], None] = _nothing
    """``(what, done, total)``."""
    name: str = ""

    def __call__(self, text: str) -> None:
        self.say(f"{self.name}: {text}" if self.name else text)

    def count(self, done: int, total: int) -> None:
        """``done`` of ``total`` runs are over."""
        self.bar(self.name, done, total)

    def at(self, name: str) -> Progress:
        """The same for a part of the work."""
        return Progress(self.say, self.bar, f"{self.name}, {name}" if self.name else name)
