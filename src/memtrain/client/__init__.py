"""A small client of a running ``memtrain serve``: the memory of a session, read, asked, edited, exported, forgotten.

The chat itself is OpenAI's API: use any client of it, with the header ``X-Session-Id``. What that API has no words for
is here, twice: :class:`MemoryClient` blocks, :class:`AsyncMemoryClient` awaits; their methods are the same. Needs
``httpx2`` (extra ``client``). Everything a user can mend is raised as :class:`~memtrain.errors.UserError`, one
sentence; :class:`Refused` also carries the status, for programs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import EllipsisType
from typing import Any, Self

from memtrain.client.wire import (
    DEFAULT_URL,
    TIMEOUT,
    Answer,
    Asked,
    Refused,
    Remembered,
    Session,
    Wire,
    http,
)

OnReading = Callable[[int, int, str], None]
"""Called as ``(chunk, chunks, memory)`` after each chunk of a long text, chunk counted from 1."""
AsyncOnReading = Callable[[int, int, str], Awaitable[None]]
"""The same, awaited."""

__all__ = [
    "DEFAULT_URL",
    "Answer",
    "AsyncMemoryClient",
    "AsyncOnReading",
    "MemoryClient",
    "OnReading",
    "Refused",
    "Remembered",
    "Session",
]


class MemoryClient(Wire):
    """Speaks to a server and waits. Use as a context manager, or close it.

    Raises :class:`UserError` where the address is none or httpx2 is not installed.
    """

    def __init__(self, url: str = DEFAULT_URL, key: str = "", *, timeout: float = TIMEOUT) -> None:
        super().__init__(url, key, timeout)
        self._client = http().Client(**self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(self, asked: Asked) -> dict[str, Any]:
        try:
            return self._json(self._client.request(asked.method, asked.path, json=asked.body, params=asked.params))
        except http().HTTPError as error:
            raise self._lost(error) from None

    def read(self, session: str, text: str, question: str = "", on_reading: OnReading | None = None) -> Remembered:
        """Read a text of any length into the memory; a question tells what to look for."""
        asked, end = self._read(session, text, question), None
        try:
            with self._client.stream(asked.method, asked.path, json=asked.body) as response:
                if not response.is_success:
                    response.read()
                self._check(response)
                for sent in http().EventSource(response):
                    event = self._event(sent.data)
                    if isinstance(event, Remembered):
                        end = event
                    elif event is not None and on_reading is not None:
                        on_reading(event.chunk, event.chunks, event.memory)
        except http().HTTPError as error:
            raise self._lost(error) from None
        if end is None:
            raise self._unfinished()
        return end

    remember = read
    """A fact is a short text."""

    def ask(self, session: str, question: str) -> Answer:
        """Answer from the memory alone; changes nothing."""
        return self._made(Answer, self._send(Asked("POST", self.place(session, "ask"), {"question": question})))

    recall = ask
    """The same, by the name that tools use."""

    def get(self, session: str) -> Session:
        """The session with its memory; :class:`Refused` with status 404 where there is none."""
        return self._made(Session, self._send(Asked("GET", self.place(session))))

    def edit(
        self,
        session: str,
        memory: str | None = None,
        *,
        expires_in: float | EllipsisType | None = ...,
        turn: int | None = None,
    ) -> Session:
        """Put another memory in place, or another end: seconds from now, None for never. Makes the session.

        With ``turn``, :class:`Refused` with status 409 where the session has moved on from that turn.
        """
        return self._made(Session, self._send(self._edit(session, memory, expires_in, turn)))

    def sessions(self) -> Iterator[Session]:
        """Every session of this owner, by name."""
        after, more = "", True
        while more:
            found, more = self._sessions(self._send(self._page(after)))
            yield from found
            more, after = more and bool(found), found[-1].session_id if found else ""

    def export(self, session: str) -> dict[str, Any]:
        """All that is kept: ``session``, and under ``turns`` what the memory held after each."""
        return self._send(Asked("GET", self.place(session, "export")))

    def forget(self, session: str) -> bool:
        """Delete a session with its history; False where there was none."""
        try:
            return bool(self._send(Asked("DELETE", self.place(session))).get("deleted"))
        except Refused as error:
            if error.status == 404:
                return False
            raise

    def forget_everything(self) -> int:
        """Delete every session of this owner; how many there were."""
        return int(self._send(Asked("DELETE", "/v1/memory")).get("deleted", 0))


class AsyncMemoryClient(Wire):
    """:class:`MemoryClient` for ``await``: the same methods, the same errors."""

    def __init__(self, url: str = DEFAULT_URL, key: str = "", *, timeout: float = TIMEOUT) -> None:
        super().__init__(url, key, timeout)
        self._client = http().AsyncClient(**self._settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _send(self, asked: Asked) -> dict[str, Any]:
        try:
            sent = await self._client.request(asked.method, asked.path, json=asked.body, params=asked.params)
            return self._json(sent)
        except http().HTTPError as error:
            raise self._lost(error) from None

    async def read(
        self, session: str, text: str, question: str = "", on_reading: AsyncOnReading | None = None
    ) -> Remembered:
        """As :meth:`MemoryClient.read`; cancelling it stops the server's work, and nothing is kept."""
        asked, end = self._read(session, text, question), None
        try:
            async with self._client.stream(asked.method, asked.path, json=asked.body) as response:
                if not response.is_success:
                    await response.aread()
                self._check(response)
                async for sent in http().EventSource(response):
                    event = self._event(sent.data)
                    if isinstance(event, Remembered):
                        end = event
                    elif event is not None and on_reading is not None:
                        await on_reading(event.chunk, event.chunks, event.memory)
        except http().HTTPError as error:
            raise self._lost(error) from None
        if end is None:
            raise self._unfinished()
        return end

    remember = read
    """A fact is a short text."""

    async def ask(self, session: str, question: str) -> Answer:
        """As :meth:`MemoryClient.ask`."""
        return self._made(Answer, await self._send(Asked("POST", self.place(session, "ask"), {"question": question})))

    recall = ask
    """The same, by the name that tools use."""

    async def get(self, session: str) -> Session:
        """As :meth:`MemoryClient.get`."""
        return self._made(Session, await self._send(Asked("GET", self.place(session))))

    async def edit(
        self,
        session: str,
        memory: str | None = None,
        *,
        expires_in: float | EllipsisType | None = ...,
        turn: int | None = None,
    ) -> Session:
        """As :meth:`MemoryClient.edit`."""
        return self._made(Session, await self._send(self._edit(session, memory, expires_in, turn)))

    async def sessions(self) -> AsyncIterator[Session]:
        """As :meth:`MemoryClient.sessions`."""
        after, more = "", True
        while more:
            found, more = self._sessions(await self._send(self._page(after)))
            for one in found:
                yield one
            more, after = more and bool(found), found[-1].session_id if found else ""

    async def export(self, session: str) -> dict[str, Any]:
        """As :meth:`MemoryClient.export`."""
        return await self._send(Asked("GET", self.place(session, "export")))

    async def forget(self, session: str) -> bool:
        """As :meth:`MemoryClient.forget`."""
        try:
            return bool((await self._send(Asked("DELETE", self.place(session)))).get("deleted"))
        except Refused as error:
            if error.status == 404:
                return False
            raise

    async def forget_everything(self) -> int:
        """As :meth:`MemoryClient.forget_everything`."""
        return int((await self._send(Asked("DELETE", "/v1/memory"))).get("deleted", 0))
