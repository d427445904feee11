"""Collects what waiting episodes ask for, so that one batch serves them all.

An episode awaits one request at a time; when every runnable episode waits, the batch runs and wakes them. Requests
keep the order in which they were made, which makes a run reproducible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

QUIET_TICKS = 10
"""Passes of the event loop without a new request before a batch runs: waking a chain of awaits takes a few."""


class Batcher(Generic[Request, Answer]):
    """Turns single awaited requests into batches for one function."""

    def __init__(self, run: Callable[[list[Request]], list[Answer]]):
        self._run = run
        self._pending: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._seen = 0
        self._quiet = 0
        self._armed = False

    async def ask(self, request: Request) -> Answer:
        """Wait for the answer to one request."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._pending.append((request, future))
        if not self._armed:
            self._armed, self._quiet = True, 0
            loop.call_soon(self._tick, loop)
        return await future

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._quiet = self._quiet + 1 if len(self._pending) == self._seen else 0
        self._seen = len(self._pending)
        if self._quiet < QUIET_TICKS:
            loop.call_soon(self._tick, loop)
            return
        batch, self._pending, self._seen, self._armed = self._pending, [], 0, False
        live = [(request, future) for request, future in batch if not future.done()]
        try:
            answers = self._run([request for request, _ in live])
        except BaseException as error:
            for _, future in live:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise  # Ctrl-C reaches the caller as itself
            return
        for (_, future), answer in zip(live, answers, strict=True):
            if not future.done():
                future.set_result(answer)
