"""Search over HTTP, by the contract of ``contract.py``; queries that wait at the same moment go out as one request.

A server that hangs, dies or talks nonsense costs a bounded time and gives failed searches, never an exception: a try
has one deadline for everything, a failed request is tried again after pauses that double, and after some failures in a
row nobody waits for the server any more, until one try, sent now and then, is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from memtrain.addresses import on_this_machine
from memtrain.errors import UserError, first_line
from memtrain.search.base import Found
from memtrain.search.breaker import Breaker, Patience
from memtrain.search.contract import MOST_QUERIES, Unanswered, endpoint, question, read_answer, without_secrets
from memtrain.search.thread import LoopThread
from memtrain.settings import SearchSettings

MOST_BYTES = 16 << 20
"""A longer body is no answer."""
QUIET_TICKS = 10
"""Passes of the event loop without a new query before a request goes out: waking a chain of awaits takes a few."""
RETRIED_STATUS = frozenset({408, 425, 429})
"""What a later try may mend, besides the server's own errors (5xx)."""
CHECK_SECONDS = 10.0
Asked = tuple[tuple[str, ...], int, asyncio.Future[list[Found]]]
"""Queries, topk, and who waits for them."""


class HttpRetriever:
    """A :class:`memtrain.search.base.Retriever` that asks a server."""

    def __init__(self, url: str, patience: Patience | None = None, connections: int = 16) -> None:
        """``url``: the server's address, with or without ``/retrieve``. Nothing is sent yet.

        Raises :class:`UserError` where the extra ``search`` is missing.
        """
        try:
            import httpx2
        except ImportError as error:
            raise UserError(
                f"key 'search.url' is {without_secrets(url)!r}, which needs an HTTP client ({error}): "
                "pip install 'memtrain[search]'"
            ) from None
        self._http = httpx2
        self.url, self.patience, self.connections = endpoint(url), patience or Patience(), connections
        self._breaker = Breaker(self.patience.break_after, self.patience.cooldown)
        self._counts = {"searches": 0.0, "failed": 0.0, "requests": 0.0, "retried": 0.0, "seconds": 0.0}
        self._waiting: list[Asked] = []
        self._home: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = LoopThread("memtrain-search")
        self._client: Any = None
        self._slots: asyncio.Semaphore | None = None

    @classmethod
    def of(cls, settings: SearchSettings) -> HttpRetriever:
        """The server of a recipe."""
        patience = Patience(timeout=settings.timeout, retries=settings.retries)
        return cls(settings.url, patience, settings.connections)

    @property
    def name(self) -> str:
        """The address."""
        return without_secrets(self.url)

    async def search(self, queries: Sequence[str], topk: int) -> list[Found]:
        """See :class:`Retriever`."""
        home = asyncio.get_running_loop()
        if self._home is not home:  # an earlier loop may have been stopped while somebody waited
            self._home, self._waiting = home, []
        future: asyncio.Future[list[Found]] = home.create_future()
        self._waiting.append((tuple(queries), topk, future))
        if len(self._waiting) == 1:
            self._start(self._send_what_waits())
        return await future

    async def check(self) -> None:
        """See :class:`Retriever`: one short try."""
        try:
            await self._thread.run(self._try(["memtrain"], 1, min(self.patience.timeout, CHECK_SECONDS)))
        except Unanswered as error:
            raise UserError(
                f"the search server {self.name} gives no search results ({error}); start it (memtrain search-server "
                "PASSAGES), or mend search.url"
            ) from None

    def counts(self) -> dict[str, float]:
        """See :class:`Retriever`."""
        return dict(self._counts)

    def close(self) -> None:
        """See :class:`Retriever`."""
        self._thread.close(self._disconnect())

    # ---- in the caller's event loop --------------------------------------------------------------------------------

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the event loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    async def _send_what_waits(self) -> None:
        """Send what waits once nobody adds to it: whoever was woken together searches together."""
        seen = 0
        while seen != len(self._waiting):
            seen = len(self._waiting)
            for _ in range(QUIET_TICKS):
                await asyncio.sleep(0)
        waiting, self._waiting = self._waiting, []
        for topk in dict.fromkeys(topk for _, topk, _ in waiting):
            self._start(self._answer([asked for asked in waiting if asked[1] == topk], topk))

    async def _answer(self, group: list[Asked], topk: int) -> None:
        """Ask for all queries of a group, and hand each caller its own."""
        queries = [query for asked, _, _ in group for query in asked]
        blocks = [queries[start : start + MOST_QUERIES] for start in range(0, len(queries), MOST_QUERIES)]
        try:
            answers = await asyncio.gather(*(self._thread.run(self._ask(block, topk)) for block in blocks))
        except Exception as error:  # no server can cause this: tell those who wait, do not leave them waiting
            for _, _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        found = iter([outcome for block in answers for outcome in block])
        for asked, _, future in group:
            mine = [next(found) for _ in asked]
            if not future.done():  # its episode may have been cancelled
                future.set_result(mine)

    # ---- in the thread of the connections --------------------------------------------------------------------------

    async def _ask(self, queries: list[str], topk: int) -> list[Found]:
        """One request with its retries; the outcome of every query."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.connections)
        async with self._slots:
            began = time.perf_counter()
            found = await self._persist(queries, topk)
            self._counts["seconds"] += time.perf_counter() - began
        self._counts["searches"] += len(queries)
        self._counts["failed"] += sum(outcome.failed for outcome in found)
        return found

    async def _persist(self, queries: list[str], topk: int) -> list[Found]:
        reason = "not asked: the server has not answered for a while"
        for attempt in range(self.patience.retries + 1):
            await asyncio.sleep(self.patience.pause_before(attempt))
            if not self._breaker.passes():
                break
            self._counts["retried"] += attempt > 0
            try:
                return await self._try(queries, topk, self.patience.timeout)
            except Unanswered as error:
                reason = str(error)
                if error.final:
                    break
        return [Found(failure=reason)] * len(queries)

    async def _try(self, queries: list[str], topk: int, timeout: float) -> list[Found]:
        """One try. Raises :class:`Unanswered` for everything that can go wrong with a server."""
        self._counts["requests"] += 1
        try:
            async with asyncio.timeout(timeout):
                body = await self._post(question(queries, topk))
            found = read_answer(body, len(queries), topk)
        except Unanswered as error:
            self._breaker.report(answered=error.final)  # a server that refuses is alive
            raise
        except TimeoutError:
            self._breaker.report(answered=False)
            raise Unanswered(f"no answer in {timeout:g} s") from None
        except Exception as error:  # whatever the connection, the protocol or a decoder say
            self._breaker.report(answered=False)
            raise Unanswered(f"{type(error).__name__}: {first_line(error)}") from None
        self._breaker.report(answered=True)
        return found

    async def _post(self, body: dict[str, Any]) -> bytes:
        """The body of the answer, which is read no further than :data:`MOST_BYTES`."""
        if self._client is None:
            # The deadline is our own. A proxy named by the environment is for other machines.
            self._client = self._http.AsyncClient(
                timeout=None,
                limits=self._http.Limits(max_connections=self.connections),
                trust_env=not on_this_machine(self.url),
                headers={"Accept-Encoding": "identity"},
            )
        async with self._client.stream("POST", self.url, json=body) as response:
            if response.status_code != 200:
                again = response.status_code >= 500 or response.status_code in RETRIED_STATUS
                raise Unanswered(f"HTTP status {response.status_code}", final=not again)
            answer = bytearray()
            async for part in response.aiter_bytes():
                answer += part
                if len(answer) > MOST_BYTES:
                    raise Unanswered(f"an answer of over {MOST_BYTES >> 20} MiB")
            return bytes(answer)

    async def _disconnect(self) -> None:
        client, self._client, self._slots = self._client, None, None
        if client is not None:
            await client.aclose()
