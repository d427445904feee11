"""What workers show: rank 0's progress reaches the terminal of whoever started the run, the others are silent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from memtrain.report.console import Screen

FORWARDED = ("stage", "advance", "inner", "metrics", "sample", "note")
INNER_SECONDS = 0.25
"""Progress inside a step is told so often at most."""


class SilentScreen(Screen):
    """For workers other than rank 0."""

    def __init__(self) -> None:
        super().__init__(console=Console(quiet=True), live=False)


class SentScreen(SilentScreen):
    """Every call is handed to ``send(name, arguments)``, which :func:`show` plays on a real screen elsewhere."""

    def __init__(self, send: Callable[[str, tuple[Any, ...]], None]) -> None:
        super().__init__()
        self.send = send
        self._told = 0.0

    def stage(self, name: str, total: int) -> None:
        """See :class:`Screen`."""
        self.send("stage", (name, total))

    def advance(self, n: int = 1) -> None:
        """See :class:`Screen`."""
        self.send("advance", (n,))

    def inner(self, what: str, done: int, total: int) -> None:
        """See :class:`Screen`."""
        now = time.monotonic()
        if now - self._told >= INNER_SECONDS or done >= total:
            self._told = now
            self.send("inner", (what, done, total))

    def metrics(self, step: int, values: Any) -> None:
        """See :class:`Screen`."""
        self.send("metrics", (step, dict(values)))

    def sample(self, text: str, reward: float | None = None) -> None:
        """See :class:`Screen`."""
        self.send("sample", (text, reward))

    def note(self, text: str) -> None:
        """See :class:`Screen`."""
        self.send("note", (text,))


def show(screen: Screen, name: str, arguments: tuple[Any, ...]) -> None:
    """Play one call that a :class:`SentScreen` has sent."""
    if name in FORWARDED:
        getattr(screen, name)(*arguments)
