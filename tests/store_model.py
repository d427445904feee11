"""A store beside dictionaries that should do the same, and sessions to put into it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memtrain.memory.text_model import Message
from memtrain.memory.texts import NO_MEMORY
from memtrain.serving.store import Conflict, Session, Store, TurnRecord, storable

TALK = (Message("user", "Book the Astoria."), Message("assistant", "Done – für zwei 🙂"))
NASTY = {
    "nothing": "",
    "emoji": "👩‍👩‍👧 \U0001f600 e\u0301 \u202e",
    "quotes": "'; DROP TABLE memtrain_sessions; -- \" \\ %s :owner ? {x} $1",
    "lines": "a\r\n\tb\x1b[0m\x7f",
    "NUL": "before\0after",
    "half a pair": "x\ud83dy\udc00",
    "long": "größer🙂" * 8192,
}
_fresh = count()


class Clock:
    """Seconds since 1970, moved by hand."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def first(owner: str = "ann", id: str = "trip", **values: Any) -> Session:
    state = {"memory": "m1", "recent": TALK, "history": "h1", "model": "tiny", "expires": None, "updated": 1_000_000.0}
    return Session(owner, id, turn=1, created=1_000_000.0, **{**state, **values})


def begun(store: Store, turns: int, owner: str = "ann", id: str = "trip") -> Session:
    """A session of so many turns; turn n has the memory ``m<n>`` and the history ``h<n>``."""
    store.commit(first(owner, id), 1, 2, 0)
    for turn in range(2, turns + 1):
        store.commit(replace(first(owner, id), turn=turn, memory=f"m{turn}", history=f"h{turn}"), turn, 2, turn - 1)
    found = store.session(owner, id)
    assert found is not None
    return found


IDS = st.sampled_from(["auto-1", "auto-2", "auto%"])
HISTORIES = st.sampled_from(["h1", "h2"])
MEMORIES = st.text(max_size=20) | st.sampled_from(list(NASTY.values()))
EXPIRIES = st.none() | st.integers(0, 6).map(float)


class Model(RuleBasedStateMachine):
    """The store beside dictionaries that should do the same: of sessions, and of their turns."""

    def __init__(self, store: Store, clock: Clock) -> None:
        super().__init__()
        self.store, self.clock, n = store, clock, next(_fresh)
        self.owners = (f"ann{n}", f"ANN{n}")
        self.all: dict[tuple[str, str], Session] = {}
        self.turns: dict[tuple[str, str], dict[int, TurnRecord]] = {}
        self.read: list[Session] = []
        self.stale: list[Session] = []

    def live(self, key: tuple[str, str]) -> Session | None:
        found = self.all.get(key)
        return found if found and (found.expires is None or found.expires > self.clock.now) else None

    def in_(self, seconds: float | None) -> float | None:
        return None if seconds is None else self.clock.now + seconds

    def keep(self, session: Session, spent: tuple[int, int], before: dict[int, TurnRecord]) -> None:
        key = (session.owner, session.id)
        record = TurnRecord(
            session.turn, session.memory, session.recent, session.history, *spent, created=session.updated
        )
        self.all[key] = session
        self.turns[key] = {turn: kept for turn, kept in before.items() if turn < session.turn} | {session.turn: record}

    @rule(who=st.integers(0, 1), id=IDS, memory=MEMORIES, history=HISTORIES, ends=EXPIRIES, back=st.integers(0, 3))
    def commit(self, who: int, id: str, memory: str, history: str, ends: float | None, back: int) -> None:
        key = (self.owners[who], id)
        old, now = self.live(key), self.clock.now
        if old is None:
            new = Session(*key, 1, memory, TALK, history, "m", now, now, self.in_(ends))
        else:
            seen = self.store.session(*key)
            turn = max(1, old.turn + 1 - back)
            state = {"turn": turn, "memory": memory, "history": history, "updated": now, "expires": self.in_(ends)}
            new = replace(seen, **state)
        self.store.commit(new, 3, 4, 0 if old is None else old.turn)
        self.keep(replace(new, memory=storable(memory)), (3, 4), self.turns[key] if old else {})

    @rule(who=st.integers(0, 1), id=IDS)
    def look(self, who: int, id: str) -> None:
        """Remembers a state, for :meth:`late`."""
        if (found := self.store.session(self.owners[who], id)) is not None:
            self.read.append(found)

    @rule(pick=st.integers(0, 50))
    def late(self, pick: int) -> None:
        """A turn from a state that was read earlier goes in if and only if nothing was written since."""
        if not self.read:
            return
        seen = self.read[pick % len(self.read)]
        key, new = (seen.owner, seen.id), replace(seen, turn=seen.turn + 1, memory="late", updated=self.clock.now)
        stored = self.store.session(*key)
        if self.live(key) is not None and stored.version == seen.version:
            self.store.commit(new, 1, 1, seen.turn)
            self.keep(new, (1, 1), self.turns[key])
        else:
            with pytest.raises(Conflict):
                self.store.commit(new, 1, 1, seen.turn)

    @rule(
        who=st.integers(0, 1),
        id=IDS,
        memory=st.none() | MEMORIES,
        ends=st.just(...) | EXPIRIES,
        expected=st.none() | st.integers(-1, 1),
    )
    def put(self, who: int, id: str, memory: str | None, ends: Any, expected: int | None) -> None:
        key = (self.owners[who], id)
        old, now = self.live(key), self.clock.now
        turn = old.turn if old else 0
        given = {
            "memory": memory,
            "expires": ends if ends is ... else self.in_(ends),
            "expected_turn": None if expected is None else turn + expected,
            "now": now,
        }
        if expected not in (None, 0):
            with pytest.raises(Conflict):
                self.store.put(*key, **given)
            return
        new = old or Session(*key, 0, NO_MEMORY, (), "", "", now, now, None)
        if ends is not ...:
            new = replace(new, expires=self.in_(ends))
        if memory is not None or old is None:
            text = new.memory if memory is None else storable(memory)
            new = replace(new, turn=turn + 1, memory=text, updated=now)
            self.keep(new, (0, 0), self.turns[key] if old else {})
        self.all[key] = new
        assert self.store.put(*key, **given) == new

    @rule(who=st.integers(0, 1), id=IDS)
    def delete(self, who: int, id: str) -> None:
        key = (self.owners[who], id)
        assert self.store.delete(*key) == (self.live(key) is not None)
        self.all.pop(key, None)

    @rule(who=st.integers(0, 1))
    def delete_all(self, who: int) -> None:
        keys = [key for key in self.all if key[0] == self.owners[who]]
        assert self.store.delete_all(self.owners[who]) == sum(self.live(key) is not None for key in keys)
        for key in keys:
            del self.all[key]

    @rule()
    def expire(self) -> None:
        gone = [key for key in self.all if self.live(key) is None]
        assert self.store.expire(self.clock.now) == len(gone)
        for key in gone:
            del self.all[key]

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def same(self) -> None:
        for owner in self.owners:
            live = {id: s for (who, id), s in sorted(self.all.items()) if who == owner and self.live((who, id))}
            assert self.store.sessions(owner) == list(live.values())
            assert self.store.count(owner) == len(live)
            for id in ("auto-1", "auto%"):
                assert self.store.session(owner, id) == live.get(id)
                turns = self.turns[owner, id] if id in live else {}
                assert self.store.turns(owner, id) == list(turns.values())
                at = [record for record in turns.values() if record.history == "h1"]
                assert self.store.turn_with_history(owner, id, "h1") == (at[-1] if at else None)
            there = [s for s in live.values() if s.history == "h2" and s.id.startswith("auto-")]
            assert self.store.by_history(owner, "h2") == max(there, key=lambda s: (s.updated, s.id), default=None)

    def teardown(self) -> None:
        for owner in self.owners:
            self.store.delete_all(owner)
