"""An event loop in a thread of its own.

An engine that computes on the CPU blocks its caller's event loop for longer than a network deadline: connections that
lived there would time out while nobody looked. Here they are looked after whatever the caller does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

T = TypeVar("T")
LAST_SECONDS = 5.0
"""What :meth:`LoopThread.close` waits for at most."""


class LoopThread:
    """Starts with the first coroutine, and ends with :meth:`close` or the process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine that runs over there."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name=self._name, daemon=True)
            self._thread.start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self, last: Coroutine[Any, Any, Any]) -> None:
        """Cancel what still runs there, then run ``last`` and end the thread; it may be started again."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            last.close()
            return
        ending = asyncio.run_coroutine_threadsafe(_end(last), loop)
        with contextlib.suppress(TimeoutError, CancelledError):  # a daemon, it ends with the process at the latest
            ending.result(LAST_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LAST_SECONDS)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _end(last: Coroutine[Any, Any, Any]) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await last
