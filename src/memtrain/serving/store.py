"""Where conversations are kept between their turns: one row a session, one a turn that can be gone back to.

A session belongs to one owner; nothing here reads or changes a row without its owner's name. A session past its expiry
is not there, whether or not :meth:`Store.expire` has been by. A turn that was committed is on the disk.

Texts come back as they went in, save for what UTF-8 or PostgreSQL cannot hold: a NUL character and half a surrogate
pair become U+FFFD, in either database.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Any

from sqlalchemy import Connection, Row

from memtrain.memory.text_model import Message
from memtrain.memory.texts import NO_MEMORY
from memtrain.serving import statements as say
from memtrain.serving.database import Database, StoreError
from memtrain.serving.tables import NAME_CHARS

__all__ = ["Conflict", "Session", "Store", "StoreError", "TurnRecord", "storable"]

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Session:
    """One conversation as it stands after its newest turn."""

    owner: str
    """Who may see it."""
    id: str
    """Unique among the owner's."""
    turn: int
    """Turns so far, from 1; writing the memory by hand is one."""
    memory: str
    """The memory after that turn."""
    recent: tuple[Message, ...]
    """The last messages, word for word."""
    history: str
    """Hash of all messages so far; empty where there were none."""
    model: str
    """Who spoke last."""
    created: float
    """Seconds since 1970, UTC."""
    updated: float
    """The same: when the last turn ended."""
    expires: float | None
    """The same: from then on it is not there; ``None``: never."""
    version: str = field(default="", compare=False)
    """A new random text with every write. :meth:`Store.commit` refuses a session made from an older one, even where
    the turn numbers agree (the session was taken back, or deleted and begun again); empty: only the number counts."""


@dataclass(frozen=True)
class TurnRecord:
    """What a session was after one of its turns."""

    turn: int
    """From 1."""
    memory: str
    """As in :class:`Session`, and so the next two."""
    recent: tuple[Message, ...]
    history: str
    prompt_tokens: int
    """Read by the model, over all calls of the turn."""
    completion_tokens: int
    """Written by the model, the memory's included."""
    created: float
    """Seconds since 1970, UTC."""


class Conflict(Exception):
    """The session has moved on."""


def storable(text: str) -> str:
    """``text`` as every store gives it back: U+FFFD for NUL characters and unpaired surrogates."""
    return _UNSTORABLE.sub("\ufffd", text)


class Store:
    """Sessions and their turns, for any number of threads and processes.

    ``url``: a path, ``sqlite:///FILE``, or ``postgresql://USER:PASSWORD@HOST/DATABASE``. ``keep_turns``: so many
    of a session's newest turns can be gone back to. ``clock``: seconds since 1970. ``make``: a file that is not there
    is made. Every method raises :class:`StoreError` (a :class:`UserError`) where the database fails; nothing is kept
    of a write that raises.
    """

    def __init__(
        self, url: str, *, keep_turns: int = 1000, clock: Callable[[], float] = time.time, make: bool = True
    ) -> None:
        if keep_turns < 1:
            raise ValueError(f"keep_turns must be at least 1, not {keep_turns}")
        self.database = Database(url, make)
        self._keep_turns, self._clock = keep_turns, clock

    def session(self, owner: str, id: str) -> Session | None:
        """The session, ``None`` where the owner has none of that name (any more)."""
        with self.database.read() as connection:
            row = connection.execute(say.ONE, {**_of(owner, id), "now": self._clock()}).one_or_none()
        return None if row is None else _session(row)

    def sessions(self, owner: str, limit: int = 100, after: str = "") -> list[Session]:
        """Up to ``limit`` of the owner's sessions in the order of their ids, those behind the id ``after``."""
        given = {"owner": _named(owner), "after": storable(after), "limit": limit, "now": self._clock()}
        with self.database.read() as connection:
            return [_session(row) for row in connection.execute(say.PAGE, given)]

    def count(self, owner: str) -> int:
        """How many sessions the owner has."""
        with self.database.read() as connection:
            return connection.execute(say.COUNT, {"owner": _named(owner), "now": self._clock()}).scalar_one()

    def by_history(self, owner: str, history: str, prefix: str = "auto-") -> Session | None:
        """The newest of the owner's sessions whose id begins with ``prefix`` and which stands at ``history``."""
        given = {"owner": _named(owner), "history": history, "prefix": prefix, "now": self._clock()}
        with self.database.read() as connection:
            row = connection.execute(say.BY_HISTORY, given).one_or_none()
        return None if row is None else _session(row)

    def turn_with_history(self, owner: str, id: str, history: str) -> TurnRecord | None:
        """The newest kept turn of the session after which it stood at ``history``."""
        given = {**_of(owner, id), "history": history, "now": self._clock()}
        with self.database.read() as connection:
            row = connection.execute(say.TURN_AT, given).one_or_none()
        return None if row is None else _record(row)

    def turns(self, owner: str, id: str) -> list[TurnRecord]:
        """The kept turns, oldest first."""
        with self.database.read() as connection:
            return [_record(row) for row in connection.execute(say.TURNS, {**_of(owner, id), "now": self._clock()})]

    def commit(self, session: Session, prompt_tokens: int, completion_tokens: int, expected_turn: int) -> None:
        """Keeps a turn: ``session`` is the new state under its new number, on the disk when this returns.

        ``expected_turn``: the turn it stood at, 0 where it was not there. A turn that is not above it goes back: the
        kept turns from there on are dropped. ``created`` of a session that is there stays. Raises :class:`Conflict`
        where the session stands elsewhere, was written since ``session`` was read, or is gone.
        """
        if not 1 <= session.turn <= expected_turn + 1:
            raise ValueError(f"turn {session.turn} does not go on from turn {expected_turn}")
        with self.database.write() as connection:
            self._step(connection, session, expected_turn, (prompt_tokens, completion_tokens), self._clock())

    def put(
        self,
        owner: str,
        id: str,
        *,
        memory: str | None,
        expires: float | EllipsisType | None,
        expected_turn: int | None,
        now: float,
    ) -> Session:
        """Writes by hand: a memory (a turn of its own; ``None`` leaves it) and an expiry (``...`` leaves it).

        Begins the session where it is not there; gives it as it is now. ``now``: seconds since 1970. Raises
        :class:`Conflict` where it does not stand at ``expected_turn`` (0: not there; ``None``: wherever it stands).
        """
        given = {**_of(owner, id), "now": now}
        memory = None if memory is None else storable(memory)
        for last in (False, True):
            try:
                with self.database.write() as connection:
                    row = connection.execute(say.ONE_TO_WRITE, given).one_or_none()
                    old = Session(owner, id, 0, NO_MEMORY, (), "", "", now, now, None) if row is None else _session(row)
                    if expected_turn not in (None, old.turn):
                        raise Conflict(f"the session stands at turn {old.turn}, not at {expected_turn}")
                    new = old if expires is ... else replace(old, expires=expires)
                    if memory is None and row is not None:
                        return self._write(connection, new, old.turn, now)
                    new = replace(new, turn=old.turn + 1, memory=old.memory if memory is None else memory, updated=now)
                    return self._step(connection, new, old.turn, (0, 0), now)
            except Conflict:
                # Two that begin it at once: who comes second finds it there.
                if last or expected_turn is not None:
                    raise
        raise AssertionError("unreachable")

    def delete(self, owner: str, id: str) -> bool:
        """Deletes the session with all its turns; whether it was there."""
        given = {**_of(owner, id), "now": self._clock()}
        with self.database.write() as connection:
            connection.execute(say.DELETE_EXPIRED, given)
            there = connection.execute(say.DELETE, given).rowcount > 0
        self.database.scrub()
        return there

    def delete_all(self, owner: str) -> int:
        """Deletes every session of the owner; how many there were."""
        given = {"owner": _named(owner), "now": self._clock()}
        with self.database.write() as connection:
            live = connection.execute(say.LOCK_ALL, given).all()
            connection.execute(say.DELETE_ALL, given)
        self.database.scrub()
        return len(live)

    def expire(self, now: float) -> int:
        """Deletes what has expired by ``now`` (seconds since 1970), of all owners; how many sessions."""
        with self.database.write() as connection:
            gone = connection.execute(say.EXPIRE, {"now": now}).rowcount
        if gone:
            self.database.scrub()
        return gone

    def close(self) -> None:
        """Closes every connection."""
        self.database.close()

    def _step(
        self, connection: Connection, session: Session, expected: int, tokens: tuple[int, int], now: float
    ) -> Session:
        """Writes the state and its turn; the state as it is stored. Raises :class:`Conflict`."""
        stored = self._write(connection, session, expected, now)
        values = _values(stored)
        drop = {"first": session.turn, "last_old": session.turn - self._keep_turns}
        connection.execute(say.DROP_TURNS, {"owner": session.owner, "id": session.id, **drop})
        record = {name: values[name] for name in ("owner", "id", "turn", "history", "recent", "memory")}
        spent = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "created": session.updated}
        connection.execute(say.ADD_TURN, record | spent)
        return stored

    def _write(self, connection: Connection, session: Session, expected: int, now: float) -> Session:
        """Writes the state; the state as it is stored. Raises :class:`Conflict`."""
        values = _values(session) | {"version": secrets.token_hex(16)}
        its = _of(session.owner, session.id) | {"now": now}
        if expected == 0:
            connection.execute(say.DELETE_EXPIRED, its)
            if not self.database.add(connection, say.ADD, values):
                raise Conflict("the session is there already")
        else:
            del values["owner"], values["id"], values["created"]
            where = {"its_owner": its["owner"], "its_id": its["id"], "expected": expected, "seen": session.version}
            if connection.execute(say.UPDATE, values | where | {"now": now}).rowcount != 1:
                raise Conflict(f"the session does not stand at turn {expected} any more, or is gone")
        recent = tuple(Message(message.role, storable(message.content)) for message in session.recent)
        return replace(session, memory=values["memory"], recent=recent, version=values["version"])


def _named(name: str) -> str:
    """An owner or id that can be stored as it is; others must not become one another. Raises ``ValueError``."""
    if not 0 < len(name) <= NAME_CHARS or storable(name) != name:
        raise ValueError(f"an owner or a session id has 1 to {NAME_CHARS} characters, no NUL and no lone surrogate")
    return name


def _of(owner: str, id: str) -> dict[str, Any]:
    return {"owner": _named(owner), "id": _named(id)}


def _values(session: Session) -> dict[str, Any]:
    """Its columns."""
    recent = [[message.role, storable(message.content)] for message in session.recent]
    return _of(session.owner, session.id) | {
        "turn": session.turn,
        "version": session.version,
        "history": session.history,
        "model": storable(session.model),
        "created": session.created,
        "updated": session.updated,
        "expires": session.expires,
        "recent": json.dumps(recent, ensure_ascii=False),
        "memory": storable(session.memory),
    }


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in json.loads(text))


def _session(row: Row[Any]) -> Session:
    return Session(**{**row._mapping, "recent": _messages(row.recent)})


def _record(row: Row[Any]) -> TurnRecord:
    values = {name: value for name, value in row._mapping.items() if name not in ("owner", "id")}
    return TurnRecord(**{**values, "recent": _messages(row.recent)})
