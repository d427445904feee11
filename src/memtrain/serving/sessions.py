"""Turns of sessions: one after the other within a session, committed before they are acknowledged.

The store's calls block, so they run in threads. A turn that is cancelled (its client hung up) stops the model's work
and leaves the session as it was.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import TypeVar
from weakref import WeakValueDictionary

from memtrain.memory.chat import Call, ChatAgent, Conversation, OnEvent
from memtrain.memory.text_model import Message
from memtrain.serving import history
from memtrain.serving.errors import ApiError
from memtrain.serving.store import Session, Store
from memtrain.settings import ServeSettings
from memtrain.types import StopReason

T = TypeVar("T")
AUTO = "auto-"
"""Begins the ids of sessions that no client named."""
DAY = 86_400.0


@dataclass(frozen=True)
class Options:
    """What a request asks of its reply; None leaves it to the settings."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A turn that is in the store."""

    session: Session
    calls: tuple[Call, ...]
    reply: str = ""
    stop_reason: StopReason = "stop"


@dataclass(frozen=True)
class _Start:
    """Where a turn begins: the session as it stands or as it stood, and what is new to it."""

    session: Session
    expected: int
    dialogue: Sequence[Message]
    seen: str
    """Hash of what comes before ``dialogue``."""


class Sessions:
    """All sessions of a server."""

    def __init__(self, store: Store, settings: ServeSettings) -> None:
        self.store, self.settings = store, settings
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def get(self, owner: str, session_id: str) -> Session:
        """Raises a 404 alike for a session of somebody else and for none at all."""
        session = await asyncio.to_thread(self.store.session, owner, session_id)
        if session is None:
            raise not_found(session_id)
        return session

    async def chat(
        self,
        owner: str,
        session_id: str | None,
        messages: Sequence[Message],
        agent: ChatAgent,
        model: str,
        options: Options,
        on_event: OnEvent,
        on_session: Callable[[str], None],
    ) -> Done:
        """One turn of the conversation, committed; ``on_session`` gets its id once that is settled.

        Raises 409, 429, and what the agent raises.
        """
        async with self._begin(owner, session_id, messages) as start:
            on_session(start.session.id)
            system = [message for message in messages if message.role == "system"]
            turn = await agent.turn(
                Conversation(start.session.memory, start.session.recent),
                [*system, *start.dialogue],
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                stop=options.stop,
                on_event=on_event,
            )
            reply = Message("assistant", turn.reply)
            after = replace(
                start.session,
                turn=start.session.turn + 1,
                memory=turn.conversation.memory,
                recent=turn.conversation.recent,
                history=history.extend(start.seen, [*start.dialogue, reply]),
                model=model,
            )
            return Done(await self._commit(after, turn.calls, start.expected), turn.calls, turn.reply, turn.stop_reason)

    async def read(
        self, owner: str, session_id: str, text: str, question: str, agent: ChatAgent, model: str, on_event: OnEvent
    ) -> Done:
        """A document read into the session's memory: a turn without a reply."""
        async with self._lock(owner, session_id):
            session = await self._existing_or_new(owner, session_id)
            memory, calls = await agent.read(session.memory, text, question, on_event)
            after = replace(session, turn=session.turn + 1, memory=memory, model=model)
            return Done(await self._commit(after, calls, session.turn), calls)

    async def edit(
        self, owner: str, session_id: str, memory: str | None, expires: float | EllipsisType | None, turn: int | None
    ) -> Session:
        """Change a session by hand, or make one; ``expires`` is an instant, None for never, ``...`` as it is."""
        async with self._lock(owner, session_id):
            now = time.time()
            session = await asyncio.to_thread(self.store.session, owner, session_id)
            if session is None:
                await self._check_room(owner)
                if expires is ... and self.settings.expire_days:
                    expires = now + self.settings.expire_days * DAY
            elif expires is ... and self._slides(session):
                expires = now + self.settings.expire_days * DAY

            def write() -> Session:
                return self.store.put(owner, session_id, memory=memory, expires=expires, expected_turn=turn, now=now)

            return await _whole(write)

    @asynccontextmanager
    async def _begin(self, owner: str, session_id: str | None, messages: Sequence[Message]) -> AsyncIterator[_Start]:
        dialogue = [message for message in messages if message.role != "system"]
        if session_id is not None:
            async with self._lock(owner, session_id):
                yield await self._start(await self._existing_or_new(owner, session_id), dialogue)
            return
        # The longest beginning that ends with a reply is what an automatic session has seen if it is this one.
        for n, seen in history.beginnings(dialogue)[:1]:
            known = await asyncio.to_thread(self.store.by_history, owner, seen, AUTO)
            if known is None:
                break
            async with self._lock(owner, known.id):
                session = await asyncio.to_thread(self.store.session, owner, known.id)
                if session is not None and session.history == seen:
                    yield _Start(session, session.turn, dialogue[n:], seen)
                    return
        session_id = AUTO + uuid.uuid4().hex
        async with self._lock(owner, session_id):
            yield _Start(await self._new(owner, session_id), 0, dialogue, "")

    async def _start(self, session: Session, dialogue: list[Message]) -> _Start:
        """What is new to a session that the client named."""
        tried = history.beginnings(dialogue)
        for n, seen in tried:
            if seen == session.history:
                return _Start(session, session.turn, dialogue[n:], seen)
        for n, seen in tried[: history.MOST_TRIED] if session.turn else []:
            earlier = await asyncio.to_thread(self.store.turn_with_history, session.owner, session.id, seen)
            if earlier is not None:
                back = replace(session, turn=earlier.turn, memory=earlier.memory, recent=earlier.recent)
                return _Start(back, session.turn, dialogue[n:], seen)
        n = history.overlap(session.recent, dialogue)
        # A request with replies in it comes from a client that keeps the conversation itself: what it sends next will
        # begin with what it sent now.
        seen = history.extend("", dialogue[:n]) if tried else session.history
        return _Start(session, session.turn, dialogue[n:], seen)

    async def _existing_or_new(self, owner: str, session_id: str) -> Session:
        session = await asyncio.to_thread(self.store.session, owner, session_id)
        return session if session is not None else await self._new(owner, session_id)

    async def _new(self, owner: str, session_id: str) -> Session:
        await self._check_room(owner)
        now, empty = time.time(), Conversation()
        return Session(
            owner=owner,
            id=session_id,
            turn=0,
            memory=empty.memory,
            recent=empty.recent,
            history="",
            model="",
            created=now,
            updated=now,
            expires=now + self.settings.expire_days * DAY if self.settings.expire_days else None,
        )

    async def _check_room(self, owner: str) -> None:
        most = self.settings.sessions_per_owner
        if await asyncio.to_thread(self.store.count, owner) >= most:
            raise ApiError(
                429, f"{most} sessions are kept, the most there may be; delete some", code="too_many_sessions"
            )

    def _slides(self, session: Session) -> bool:
        """Whether a session's end is the one that settings give, which every turn puts off."""
        span = self.settings.expire_days * DAY
        return bool(span and session.expires and abs(session.expires - session.updated - span) < 1)

    async def _commit(self, after: Session, calls: Sequence[Call], expected: int) -> Session:
        now = time.time()
        expires = now + self.settings.expire_days * DAY if self._slides(after) else after.expires
        after = replace(after, updated=now, expires=expires)
        prompt, completion = tokens_of(calls)
        await _whole(lambda: self.store.commit(after, prompt, completion, expected))
        return after

    @asynccontextmanager
    async def _lock(self, owner: str, session_id: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault((owner, session_id), asyncio.Lock())
        async with lock:
            yield


def not_found(session_id: str) -> ApiError:
    """The same for a session of another owner and for one that is nowhere."""
    return ApiError(404, f"there is no session {session_id}", code="session_not_found")


def tokens_of(calls: Sequence[Call]) -> tuple[int, int]:
    """Prompt and completion tokens of all calls."""
    return sum(call.prompt_tokens for call in calls), sum(call.completion_tokens for call in calls)


async def _whole(write: Callable[[], T]) -> T:
    """Run a write that nothing tears: cancelled meanwhile, it is waited for before the session is let go."""
    task = asyncio.ensure_future(asyncio.to_thread(write))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
