"""The store of conversations: what it does in any database (``StoreContract``), and that SQLite's does it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

pytest.importorskip("sqlalchemy")

from store_model import NASTY, TALK, Clock, Model, begun, first

from memtrain.errors import UserError
from memtrain.memory.text_model import Message
from memtrain.memory.texts import NO_MEMORY
from memtrain.serving.store import Conflict, Session, Store, TurnRecord, storable


class StoreContract:
    """What holds in either database; ``make(keep_turns=...)`` opens it (again)."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def make(self, url: str, clock: Clock) -> Iterator[Callable[..., Store]]:
        opened: list[Store] = []

        def make(**options: Any) -> Store:
            opened.append(Store(url, **{"clock": clock, **options}))
            return opened[-1]

        yield make
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, make: Callable[..., Store]) -> Store:
        return make()

    def test_a_turn_comes_back_as_it_went_in_and_after_a_restart(
        self, store: Store, make: Callable[..., Store]
    ) -> None:
        assert store.session("ann", "trip") is None
        assert store.count("ann") == 0
        one = first(expires=1_000_500.5)
        store.commit(one, 10, 20, 0)
        two = replace(
            one, turn=2, memory="m2", recent=(*TALK, *TALK), history="h2", model="other", updated=1_000_001.25
        )
        store.commit(two, 30, 40, 1)
        for opened in (store, make()):
            assert opened.session("ann", "trip") == two
            assert opened.turns("ann", "trip") == [
                TurnRecord(1, "m1", TALK, "h1", 10, 20, 1_000_000.0),
                TurnRecord(2, "m2", (*TALK, *TALK), "h2", 30, 40, 1_000_001.25),
            ]
            assert opened.turn_with_history("ann", "trip", "h1") == opened.turns("ann", "trip")[0]
            assert opened.turn_with_history("ann", "trip", "h3") is None
            store.close()

    @pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
    def test_any_text_can_be_a_memory_a_message_and_a_model(self, store: Store, text: str) -> None:
        session = first(memory=text, recent=(Message("user", text), Message("assistant", text)), model=text)
        store.commit(session, 1, 1, 0)
        kept = storable(text)
        assert kept == text.replace("\0", "\ufffd").replace("\ud83d", "\ufffd").replace("\udc00", "\ufffd")
        found = store.session("ann", "trip")
        assert found == replace(
            session, memory=kept, recent=(Message("user", kept), Message("assistant", kept)), model=kept
        )
        assert store.turns("ann", "trip")[0].memory == kept
        assert store.put("ann", "trip", memory=text, expires=..., expected_turn=1, now=5.0).memory == kept
        assert store.session("ann", "trip").memory == kept

    @pytest.mark.parametrize("name", ["", "a\0b", "x\ud800", "l" * 256], ids=["empty", "NUL", "half a pair", "long"])
    def test_a_name_that_could_become_another_is_none(self, store: Store, name: str) -> None:
        for refused in (
            lambda: store.session("ann", name),
            lambda: store.session(name, "trip"),
            lambda: store.commit(first(name), 1, 1, 0),
            lambda: store.delete("ann", name),
            lambda: store.sessions(name),
            lambda: store.delete_all(name),
        ):
            with pytest.raises(ValueError, match="1 to 255 characters"):
                refused()

    def test_who_comes_second_is_told_so_and_changes_nothing(self, store: Store) -> None:
        begun(store, 3)
        before = (store.session("ann", "trip"), store.turns("ann", "trip"))
        for turn, expected in ((1, 0), (3, 2), (2, 2), (5, 4), (4, 4)):
            with pytest.raises(Conflict):
                store.commit(replace(first(), turn=turn, memory="lost"), 1, 1, expected)
        with pytest.raises(Conflict):
            store.commit(replace(first(id="none"), turn=2), 1, 1, 1)
        for turn, expected in ((0, 0), (5, 3), (2, 0)):
            with pytest.raises(ValueError, match="does not go on from"):
                store.commit(replace(first(), turn=turn), 1, 1, expected)
        assert (store.session("ann", "trip"), store.turns("ann", "trip")) == before
        assert store.count("ann") == 1

    def test_a_turn_can_be_taken_back_to(self, store: Store) -> None:
        seen = begun(store, 5)
        store.commit(replace(seen, turn=3, memory="other", history="h3b"), 1, 1, 5)
        assert [record.memory for record in store.turns("ann", "trip")] == ["m1", "m2", "other"]
        assert store.session("ann", "trip").turn == 3
        assert store.turn_with_history("ann", "trip", "h4") is None
        # The numbers fit, the conversation does not: it went another way meanwhile.
        now = store.session("ann", "trip")
        store.commit(replace(now, turn=3, memory="third"), 1, 1, 3)
        with pytest.raises(Conflict):
            store.commit(replace(now, turn=4, memory="goes on from other"), 1, 1, 3)
        assert store.session("ann", "trip").memory == "third"

    def test_a_session_that_was_deleted_does_not_come_back(self, store: Store) -> None:
        seen = begun(store, 2)
        assert store.delete("ann", "trip")
        with pytest.raises(Conflict):
            store.commit(replace(seen, turn=3), 1, 1, 2)
        begun(store, 2)
        with pytest.raises(Conflict):
            store.commit(replace(seen, turn=3), 1, 1, 2)
        assert [record.turn for record in store.turns("ann", "trip")] == [1, 2]

    def test_so_many_turns_are_kept(self, make: Callable[..., Store]) -> None:
        store = make(keep_turns=3)
        begun(store, 7)
        assert [record.turn for record in store.turns("ann", "trip")] == [5, 6, 7]
        assert store.turn_with_history("ann", "trip", "h4") is None
        with pytest.raises(ValueError, match="keep_turns"):
            make(keep_turns=0)

    def test_writing_by_hand(self, store: Store) -> None:
        made = store.put("ann", "new", memory=None, expires=..., expected_turn=0, now=7.0)
        assert made == Session("ann", "new", 1, NO_MEMORY, (), "", "", 7.0, 7.0, None) == store.session("ann", "new")
        begun(store, 2)
        edited = store.put("ann", "trip", memory="by hand", expires=2e6, expected_turn=2, now=9.0)
        assert edited == store.session("ann", "trip")
        assert edited == replace(first(), turn=3, memory="by hand", history="h2", updated=9.0, expires=2e6)
        assert store.turns("ann", "trip")[-1] == TurnRecord(3, "by hand", TALK, "h2", 0, 0, 9.0)
        assert store.turn_with_history("ann", "trip", "h2").memory == "by hand"
        later = store.put("ann", "trip", memory=None, expires=None, expected_turn=None, now=11.0)
        assert later == replace(edited, expires=None) == store.session("ann", "trip")
        for expected in (0, 2, 4):
            with pytest.raises(Conflict):
                store.put("ann", "trip", memory="lost", expires=..., expected_turn=expected, now=12.0)
        with pytest.raises(Conflict):
            store.put("ann", "none", memory="lost", expires=..., expected_turn=1, now=12.0)
        assert store.session("ann", "trip") == later

    def test_a_write_by_hand_is_not_overwritten_by_a_turn_under_way(self, store: Store) -> None:
        seen = begun(store, 2)
        store.put("ann", "trip", memory=None, expires=5e6, expected_turn=None, now=9.0)
        with pytest.raises(Conflict):
            store.commit(replace(seen, turn=3), 1, 1, 2)
        assert store.session("ann", "trip").expires == 5e6

    def test_what_has_expired_is_not_there(self, store: Store, clock: Clock) -> None:
        store.commit(first(expires=clock.now + 10), 1, 1, 0)
        store.commit(first(id="stays"), 1, 1, 0)
        store.commit(first("bob", "gone", expires=clock.now + 10), 1, 1, 0)
        clock.now += 9.9
        assert store.count("ann") == 2
        clock.now += 0.1
        assert store.session("ann", "trip") is None
        assert [s.id for s in store.sessions("ann")] == ["stays"]
        assert store.turns("ann", "trip") == []
        assert store.turn_with_history("ann", "trip", "h1") is None
        assert store.by_history("ann", "h1", prefix="trip") is None
        assert store.count("ann") == 1
        assert not store.delete("bob", "gone")
        with pytest.raises(Conflict):
            store.commit(replace(first(), turn=2), 1, 1, 1)
        store.commit(first(memory="anew"), 1, 1, 0)  # the name is free again
        assert [record.memory for record in store.turns("ann", "trip")] == ["anew"]
        store.put("bob", "gone", memory="soon", expires=clock.now + 1, expected_turn=0, now=clock.now)
        assert store.expire(clock.now + 1) == 1
        assert store.expire(clock.now + 1) == 0
        assert (store.count("ann"), store.count("bob")) == (2, 0)

    def test_no_owner_sees_anothers(self, store: Store) -> None:
        begun(store, 2)
        begun(store, 3, owner="bob")
        begun(store, 1, owner="ann%", id="tri_")
        for stranger in ("cy", "ANN", "ann ", "an", "ann'--", "%", "_nn", "*"):
            assert store.session(stranger, "trip") is None
            assert store.sessions(stranger) == store.turns(stranger, "trip") == []
            assert store.turn_with_history(stranger, "trip", "h1") is None
            assert store.by_history(stranger, "h2", prefix="") is None
            assert (store.count(stranger), store.delete_all(stranger), store.delete(stranger, "trip")) == (0, 0, False)
            with pytest.raises(Conflict):
                store.commit(replace(first(stranger), turn=3), 1, 1, 2)
        for other in ("TRIP", "tri%", "tri", "trip ", "tri_"):
            assert store.session("ann", other) is None
        assert store.delete_all("ann") == 1
        assert (store.count("ann"), store.count("bob"), store.count("ann%")) == (0, 1, 1)
        assert len(store.turns("bob", "trip")) == 3

    def test_the_newest_automatic_session_at_a_history(self, store: Store) -> None:
        for n, id in enumerate(("auto-old", "auto-new", "AUTO-x", "auto", "trip")):
            store.commit(first(id=id, updated=50.0 + n if n > 1 else 10.0 + n), 1, 1, 0)
        store.commit(first("bob", "auto-bob", updated=99.0), 1, 1, 0)
        assert store.by_history("ann", "h1").id == "auto-new"
        assert store.by_history("ann", "h1", prefix="").id == "trip"
        assert store.by_history("ann", "h1", prefix="aut_-") is None
        assert store.by_history("ann", "h1", prefix="%") is None
        assert store.by_history("ann", "h2") is None
        store.commit(replace(first(id="auto-new"), turn=2, history="h2"), 1, 1, 1)
        assert store.by_history("ann", "h1").id == "auto-old"

    def test_pages_in_the_order_of_code_points(self, store: Store) -> None:
        ids = ["B", "a", "_", "A1", "A", "a-b", "ab", "é", "z", "🙂", "\uffee"]
        for id in ids:
            store.commit(first(id=id), 1, 1, 0)
        found, after = [], ""
        while page := store.sessions("ann", limit=4, after=after):
            found += [session.id for session in page]
            after = found[-1]
        assert found == sorted(ids)

    def test_deleting_takes_the_turns_along(self, store: Store) -> None:
        begun(store, 3)
        assert store.delete("ann", "trip")
        assert not store.delete("ann", "trip")
        assert store.turns("ann", "trip") == []
        begun(store, 2, owner="bob")
        assert store.delete_all("bob") == 1
        store.commit(first(expires=1.0), 1, 1, 0)
        assert store.expire(2.0) == 1
        with store.database.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM memtrain_turns").scalar_one() == 0

    def test_threads_lose_no_turn(self, store: Store) -> None:
        """Eight that go on with one session, and two that delete and expire others meanwhile."""
        begun(store, 1)
        start, each = threading.Barrier(10), 12

        def go_on(writer: int) -> list[str]:
            start.wait()
            written: list[str] = []
            while len(written) < each:
                seen = store.session("ann", "trip")
                memory = f"{writer}-{len(written)}"
                try:
                    store.commit(replace(seen, turn=seen.turn + 1, memory=memory), 1, 1, seen.turn)
                except Conflict:
                    continue
                written.append(memory)
            return written

        def sweep(n: int) -> list[str]:
            start.wait()
            for turn in range(20):
                for other in range(3):
                    store.put("bob", f"s{other}", memory="x", expires=1.0 + turn % 2, expected_turn=None, now=0.0)
                store.expire(1.5)
                store.delete_all("bob")
            return []

        with ThreadPoolExecutor(10) as threads:
            jobs = [threads.submit(go_on, n) for n in range(8)] + [threads.submit(sweep, n) for n in range(2)]
            written = [memory for job in jobs for memory in job.result(60)]
        records = store.turns("ann", "trip")
        assert [record.turn for record in records] == list(range(1, 8 * each + 2))
        assert sorted(record.memory for record in records[1:]) == sorted(written)

    def test_two_that_begin_a_session_at_once(self, store: Store) -> None:
        start = threading.Barrier(8)

        def begin(n: int) -> str:
            start.wait()
            if n % 2:
                store.put("ann", "trip", memory=f"put {n}", expires=..., expected_turn=None, now=1.0)
                return "put"
            try:
                store.commit(first(memory=f"turn {n}"), 1, 1, 0)
            except Conflict:
                return "conflict"
            return "turn"

        for _ in range(5):
            with ThreadPoolExecutor(8) as threads:
                done = [job.result(60) for job in [threads.submit(begin, n) for n in range(8)]]
            assert done.count("put") == 4
            assert done.count("turn") <= 1
            assert store.session("ann", "trip").turn == 8 - done.count("conflict")
            store.delete("ann", "trip")

    def test_a_newer_store_is_refused(self, store: Store, make: Callable[..., Store]) -> None:
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE memtrain_schema SET version = 7")
        with pytest.raises(
            UserError, match=r"store .* was written by a newer memtrain .*version 7.*: upgrade memtrain"
        ):
            make()
        with store.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM memtrain_schema")
        with pytest.raises(UserError, match="restore it from a copy"):
            make()

    def test_it_does_what_a_dictionary_does(self, store: Store, clock: Clock) -> None:
        run_state_machine_as_test(
            lambda: Model(store, clock),
            settings=settings(
                max_examples=self.EXAMPLES,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )

    EXAMPLES = 15


class TestSqlite(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "sessions.db")
