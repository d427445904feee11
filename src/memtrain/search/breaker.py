"""How long a server is waited for, and when nobody waits for it any more."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """What one request may cost."""

    timeout: float = 30.0
    """Seconds of one try, connection and body and all."""
    retries: int = 3
    """Further tries."""
    pause: float = 0.5
    """Seconds before the first of them; each further pause is twice as long, all of them give or take half."""
    break_after: int = 5
    """Failed tries in a row after which the circuit opens."""
    cooldown: float = 10.0
    """Seconds until an open circuit lets one try pass."""

    def pause_before(self, attempt: int) -> float:
        """Seconds to wait before a try, the first one counted 0; drawn anew each time, so that those who failed
        together do not come back together."""
        return self.pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.5) if attempt else 0.0


class Breaker:
    """Lets tries pass while a server answers; keeps nobody waiting for one that does not (a circuit breaker)."""

    def __init__(self, after: int, cooldown: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._after, self._cooldown, self._clock = after, cooldown, clock
        self._failures = 0
        self._next_try = 0.0

    def passes(self) -> bool:
        """Whether a try may go out now. With an open circuit one may, each time the cooldown is over."""
        if self._failures < self._after:
            return True
        now = self._clock()
        if now < self._next_try:
            return False
        self._next_try = now + self._cooldown
        return True

    def report(self, answered: bool) -> None:
        """What became of a try."""
        self._failures = 0 if answered else self._failures + 1
        if self._failures >= self._after:
            self._next_try = self._clock() + self._cooldown
