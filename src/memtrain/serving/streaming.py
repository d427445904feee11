"""A turn in a task of its own: watched for a client that hangs up, or told piece by piece as server-sent events.

Whatever ends the answer ends the task: a client that goes away, the time limit, the server's end. A task that is
cancelled stops the model and stores nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from memtrain.serving.errors import ApiError, as_refusal, body_of
from memtrain.serving.metrics import Metrics

T = TypeVar("T")
KEEP_ALIVE_SECONDS = 10.0
"""Without anything to tell, a comment goes out so often: proxies close what is silent."""
HUNG_UP = 499
"""Status of an answer that nobody waits for (nginx' number)."""


class Running(Generic[T]):
    """A turn under way. ``work`` gets a function that takes the turn's events, from any thread."""

    def __init__(
        self, work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, T]], seconds: float, metrics: Metrics
    ) -> None:
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._first = asyncio.Event()
        self._seconds, self._metrics = seconds, metrics
        loop = asyncio.get_running_loop()

        def tell(event: Any) -> None:
            loop.call_soon_threadsafe(self._take, event)

        self.task = asyncio.create_task(self._within(work(tell)))
        self.task.add_done_callback(self._ended)

    def _take(self, event: Any) -> None:
        self._events.put_nowait(event)
        self._first.set()

    async def _within(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._seconds) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            raise ApiError(504, f"not done within {self._seconds:g} seconds; nothing of it is kept") from None

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._take(None)
        if task.cancelled():
            self._metrics.stopped.labels("hung up").inc()
        elif task.exception() is not None:
            self._metrics.stopped.labels("failed").inc()

    async def result(self, request: Request) -> T:
        """The turn's result; a client that hangs up meanwhile stops it. Raises what the turn raises."""
        watch = asyncio.create_task(_hung_up(request))
        try:
            await asyncio.wait({self.task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not self.task.done():
                raise ApiError(HUNG_UP, "the client hung up")
            return self._outcome()
        finally:
            watch.cancel()
            self.task.cancel()

    async def begun(self, request: Request) -> None:
        """Wait a little for a first event: what is refused at once is then refused by its status. Raises that."""
        watch, first = asyncio.create_task(_hung_up(request)), asyncio.create_task(self._first.wait())
        try:
            await asyncio.wait({watch, first}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                raise ApiError(HUNG_UP, "the client hung up")
            if self.task.done():
                self._outcome()
        except BaseException:
            self.task.cancel()
            raise
        finally:
            watch.cancel()
            first.cancel()

    async def events(self) -> AsyncIterator[Any]:
        """The turn's events; None where a keep-alive is due. Ends with the turn."""
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield None
                continue
            if event is None:
                return
            yield event

    def _outcome(self) -> T:
        if self.task.cancelled():
            raise ApiError(503, "the server is being stopped; nothing of this request is kept", code="stopped")
        return self.task.result()

    def stream(
        self,
        shown: Callable[[Any], Iterable[dict[str, Any]]],
        last: Callable[[T], Iterable[dict[str, Any]]],
        headers: dict[str, str],
    ) -> StreamingResponse:
        """The answer as server-sent events: ``shown`` of every event, then ``last`` of the result, then ``[DONE]``."""

        async def frames() -> AsyncIterator[bytes]:
            try:
                async for event in self.events():
                    if event is None:
                        yield KEEPALIVE_COMMENT
                        continue
                    for body in shown(event):
                        yield _frame(body)
                for body in last(self._outcome()):
                    yield _frame(body)
                yield format_sse_event(data_str="[DONE]")
            except Exception as error:  # the status is out already: the error is the last event
                yield _frame(body_of(as_refusal(error)))

        return _TurnStream(self.task, frames(), headers)


class _TurnStream(StreamingResponse):
    """Its end, however it comes, is the end of the turn."""

    def __init__(self, task: asyncio.Task[Any], frames: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(frames, media_type="text/event-stream", headers={**headers, "X-Accel-Buffering": "no"})
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._task.cancel()


def _frame(body: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(body, ensure_ascii=False, separators=(",", ":")))


async def _hung_up(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return
