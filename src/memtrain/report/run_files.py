"""Two files of a run that another process works in: the growing ``metrics.jsonl`` and the lock."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LOCK_LOOK_SECONDS = 5.0
"""A lock is tried that often at most: while it is tried, a run that starts just then would find the folder taken."""


class Tail:
    """The whole lines of a growing file of JSON objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_again()

    def _start_again(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._bad, self._place, self._inode, self._rest = 0, 0, -1, b""

    def rows(self) -> list[dict[str, Any]]:
        """All steps so far; a file that was replaced or became shorter (a resumed run cuts it) is read anew."""
        try:
            with self.path.open("rb") as handle:
                state = os.fstat(handle.fileno())
                if state.st_ino != self._inode or state.st_size < self._place:
                    self._start_again()
                    self._inode = state.st_ino
                handle.seek(self._place)
                new = handle.read()
        except OSError:
            self._start_again()
            return []
        self._place += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            if not line.strip():
                continue
            row = _row(line)
            if row is None:
                self._bad += 1
            else:
                self._rows.append(row)
        return self._rows

    def warnings(self, running: bool) -> Iterator[str]:
        """What is wrong with the file. A last line without its end is only wrong where nobody writes any more."""
        if self._bad:
            lines = "line is no step" if self._bad == 1 else "lines are no steps"
            yield f"{self.path.name}: {self._bad} {lines} and left out"
        if self._rest.strip() and not running:
            yield f"{self.path.name} ends in the middle of a line; the step is left out (--resume repeats it)"


class Lock:
    """Whether a process holds a run's lock file: where the system lists locks without touching it."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.path, self.now = path, now
        self._looked, self._held = -math.inf, False

    def held(self) -> bool:
        """True while a training works in the folder."""
        try:
            state = self.path.stat()
        except OSError:
            return False
        place = f" {os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino} "
        if any("FLOCK" in line and place in line for line in _proc_locks()):
            self._looked = -math.inf
            return True
        if self.now() - self._looked >= LOCK_LOOK_SECONDS:  # another container, another system
            self._looked, self._held = self.now(), self._try()
        return self._held

    def _try(self) -> bool:
        import fcntl

        try:
            with self.path.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        return row if isinstance(row["stage"], str) and isinstance(row["step"], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _proc_locks() -> list[str]:
    try:
        return Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
