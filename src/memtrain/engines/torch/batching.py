"""Collects what waiting episodes ask for, so that one batch serves them all.

An episode awaits one request at a time; when every runnable episode waits, the batch runs. On a CPU it runs where it
is and wakes everybody when all is done, so requests keep the order in which they were made and a run is reproducible.
With a worker thread (GPU) the event loop stays free: an episode wakes as soon as its own answer is there, tokenises,
scores rewards and asks again while the device works for the others, and what it asks joins the batch that runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

QUIET_TICKS = 10
"""Passes of the event loop without a new request before a batch runs: waking a chain of awaits takes a few."""


class Batch(Generic[Request, Answer]):
    """Requests that run together, and where their answers go. Used from the thread that runs it."""

    def __init__(
        self,
        waiting: list[tuple[Request, asyncio.Future[Answer]]],
        pending: deque[tuple[Request, asyncio.Future[Answer]]],
        loop: asyncio.AbstractEventLoop | None,
    ):
        """``pending`` is where later requests arrive; ``loop`` is set where answers come from another thread."""
        self.requests = [request for request, _ in waiting]
        self._futures = [future for _, future in waiting]
        self._pending, self._loop = pending, loop

    @property
    def abandoned(self) -> bool:
        """Nobody waits for anything any more (the run was interrupted)."""
        return self._loop is not None and all(future.done() for future in self._futures)

    def arrivals(self) -> list[Request]:
        """Requests made since the last call; they are part of the batch from now on, numbered onwards."""
        new = []
        while self._loop is not None and self._pending:
            request, future = self._pending.popleft()
            self._futures.append(future)
            self.requests.append(request)
            new.append(request)
        return new

    def gone(self, number: int) -> bool:
        """Nobody waits for the answer to request ``number`` any more."""
        return self._loop is not None and self._futures[number].done()

    def deliver(self, number: int, answer: Answer) -> None:
        """Answer request ``number``; whoever waits for it goes on."""
        self._settle(self._futures[number], answer)

    def fail(self, error: BaseException) -> None:
        """Whoever still waits is told what went wrong."""
        for future in self._futures:
            self._settle(future, error)

    def _settle(self, future: asyncio.Future[Answer], outcome: Answer | BaseException) -> None:
        def settle() -> None:
            if future.done():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome if isinstance(outcome, Exception) else asyncio.CancelledError())
            else:
                future.set_result(outcome)

        loop = future.get_loop()  # a batch may have taken in a request of the loop that came after its own
        if self._loop is None:
            settle()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(settle)


def together(run: Callable[[list[Request]], list[Answer]]) -> Callable[[Batch[Request, Answer]], None]:
    """For a function that answers all at once."""

    def run_batch(batch: Batch[Request, Answer]) -> None:
        for number, answer in enumerate(run(list(batch.requests))):
            batch.deliver(number, answer)

    return run_batch


class Batcher(Generic[Request, Answer]):
    """Turns single awaited requests into batches for one function."""

    def __init__(self, run: Callable[[Batch[Request, Answer]], None], worker: ThreadPoolExecutor | None = None):
        """``run`` answers a batch; it runs on ``worker`` (of one thread) if there is one, else in the event loop."""
        self._run, self._worker = run, worker
        self._pending: deque[tuple[Request, asyncio.Future[Answer]]] = deque()
        self._seen = 0
        self._quiet = 0
        self._armed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, request: Request) -> Answer:
        """Wait for the answer to one request."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._pending.append((request, future))
        self._arm(loop)
        return await future

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        # A loop that was closed while a batch ran on the worker never came to say that it is done.
        if not self._armed or (self._loop is not loop and self._loop is not None and self._loop.is_closed()):
            self._armed, self._quiet, self._loop = True, 0, loop
            loop.call_soon(self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._quiet = self._quiet + 1 if len(self._pending) == self._seen else 0
        self._seen = len(self._pending)
        if self._quiet < QUIET_TICKS:
            loop.call_soon(self._tick, loop)
            return
        waiting = [(request, future) for request, future in self._pending if not future.done()]
        self._pending.clear()
        self._seen = 0
        batch: Batch[Request, Answer] = Batch(waiting, self._pending, loop if self._worker else None)
        if self._worker is None:
            self._armed = False
            self._answer(batch)
        else:
            self._worker.submit(self._answer, batch).add_done_callback(lambda _: self._finished(loop))

    def _answer(self, batch: Batch[Request, Answer]) -> None:
        try:
            self._run(batch)
        except BaseException as error:
            batch.fail(error)
            if not isinstance(error, Exception):
                raise  # Ctrl-C reaches the caller as itself

    def _finished(self, loop: asyncio.AbstractEventLoop) -> None:
        """What came too late for the batch that has just ended is the next one."""

        def next_batch() -> None:
            self._armed = False
            if self._pending:
                self._arm(loop)

        if not loop.is_closed():
            loop.call_soon_threadsafe(next_batch)
