"""Writers that are killed and writers that race: no turn that was acknowledged is lost, in SQLite, across processes."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from memtrain.serving.store import Store

KILLS = 25
SESSIONS = 3

# Loads everything once, then forks a writer for every line it is sent, and says when it is gone.
NURSERY = """
import os, sys
from memtrain.serving.store import Store
for line in sys.stdin:
    if not (child := os.fork()):
        os.write(1, f"pid {os.getpid()}\\n".encode())
        import writer
    os.waitpid(child, 0)
    os.write(1, b"gone\\n")
"""

# Goes on with its sessions, a thread each, and says so after every commit.
WRITER = """
import os, sys, threading
from dataclasses import replace
from memtrain.serving.store import Session, Store

def memory(turn):
    return f"turn {turn} " + "x" * (turn * 997 % 9000)  # of any length, over page borders

def go_on(store, id):
    seen = store.session("ann", id) or Session("ann", id, 0, "", (), "", "", 1.0, 1.0, None)
    while True:
        turn = seen.turn + 1
        store.commit(replace(seen, turn=turn, memory=memory(turn)), turn, 1, seen.turn)
        os.write(1, f"{id} {turn}\\n".encode())
        seen = store.session("ann", id)

store = Store(sys.argv[1], keep_turns=50)
for n in range(int(sys.argv[2])):
    threading.Thread(target=go_on, args=(store, f"s{n}")).start()
threading.Event().wait()
"""


def memory(turn: int) -> str:
    return f"turn {turn} " + "x" * (turn * 997 % 9000)


@contextmanager
def python(code: str, *arguments: str, path: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **({"PYTHONPATH": str(path)} if path else {})},
    )
    assert child.stdin is not None
    try:
        yield child
    finally:
        child.stdin.close()
        child.kill()
        child.wait(30)


def say(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{line}\n")
    child.stdin.flush()


def test_every_acknowledged_turn_is_there_after_a_kill(tmp_path: Path) -> None:
    path, drawn = tmp_path / "sessions.db", random.Random(6)
    (tmp_path / "writer.py").write_text(WRITER)
    newest, acknowledged = dict.fromkeys((f"s{n}" for n in range(SESSIONS)), 0), 0
    with python(NURSERY, str(path), str(SESSIONS), path=tmp_path) as nursery:
        for kill in range(KILLS):
            say(nursery, "go")
            word, pid = nursery.stdout.readline().split()
            assert word == "pid"
            line = nursery.stdout.readline()  # the first turn, so that every kill falls among writes
            time.sleep(drawn.uniform(0, 0.15))
            os.kill(int(pid), signal.SIGKILL)
            while line != "gone\n":
                found = re.fullmatch(r"(s\d) (\d+)\n", line)
                assert found, line
                newest[found[1]] += 1
                assert int(found[2]) == newest[found[1]]
                acknowledged += 1
                line = nursery.stdout.readline()
            store = Store(str(path), keep_turns=50)
            for id, turn in newest.items():
                session = store.session("ann", id)
                # One more may have been kept whose acknowledgement died with its writer.
                newest[id] = stands = session.turn if session else 0
                assert stands in (turn, turn + 1), f"kill {kill}: {id}"
                if session:
                    assert session.memory == memory(stands)
                    kept = store.turns("ann", id)
                    assert [record.turn for record in kept] == list(range(max(1, stands - 49), stands + 1))
                    assert all(record.memory == memory(record.turn) for record in kept)
            with store.database.read() as connection:
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalars().all() == ["ok"]
                assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
            store.close()
    assert acknowledged > 2 * KILLS


# Reads at one word and commits at the next, so that two of them read the same turn.
RACER = """
import sys
from dataclasses import replace
from memtrain.serving.store import Conflict, Session, Store
store, name = Store(sys.argv[1], keep_turns=10_000), sys.argv[2]
for line in sys.stdin:
    words = line.split()
    if words[0] == "read":
        seen = store.session("ann", "trip") or Session("ann", "trip", 0, "", (), "", "", 1.0, 1.0, None)
        print(seen.turn, flush=True)
    else:
        try:
            back = int(words[1]) if seen.turn else 0
            store.commit(replace(seen, turn=seen.turn + 1 - back, memory=name + words[2]), 1, 1, seen.turn)
            print("kept", flush=True)
        except Conflict:
            print("conflict", flush=True)
"""


def test_of_two_processes_at_the_same_turn_one_wins_and_one_is_told(tmp_path: Path) -> None:
    path, expected = str(tmp_path / "sessions.db"), []
    Store(path).close()
    with python(RACER, path, "a") as first, python(RACER, path, "b") as second:
        for race in range(60):
            both = (first, second)
            for child in both:
                say(child, "read")
            assert [child.stdout.readline() for child in both] == [f"{len(expected)}\n"] * 2
            back = race % 5 == 4 and bool(expected)  # a turn that is taken back to: the number stays the same
            for child in both if race % 2 else both[::-1]:
                say(child, f"commit {int(back)} {race}")
            said = [child.stdout.readline().strip() for child in both]
            assert sorted(said) == ["conflict", "kept"]
            if back:
                expected.pop()
            expected.append(f"{'ab'[said.index('kept')]}{race}")
    store = Store(path)
    assert [record.memory for record in store.turns("ann", "trip")] == expected
    assert store.session("ann", "trip").memory == expected[-1]
    store.close()


# As fast as it can: turns, trying again after each conflict; or memories by hand, which meet none.
CROWD = """
import sys
from dataclasses import replace
from memtrain.serving.store import Conflict, Store
store, name, n = Store(sys.argv[1], keep_turns=10_000), sys.argv[2], 0
print("ready", flush=True)
sys.stdin.readline()
while n < int(sys.argv[3]):
    if len(sys.argv) > 4:
        store.put("ann", "trip", memory=f"{name}{n}", expires=..., expected_turn=None, now=1.0)
        print(f"{name}{n}", flush=True)
        n += 1
        continue
    seen = store.session("ann", "trip")
    try:
        store.commit(replace(seen, turn=seen.turn + 1, memory=f"{name}{n}"), 1, 1, seen.turn)
    except Conflict:
        continue
    print(f"{name}{n}", flush=True)
    n += 1
"""


@pytest.mark.parametrize("by_hand", [(), ("by hand",)], ids=["turns", "by hand"])
def test_two_processes_that_write_as_fast_as_they_can_lose_nothing(tmp_path: Path, by_hand: tuple[str, ...]) -> None:
    path, each = str(tmp_path / "sessions.db"), 150
    store = Store(path, keep_turns=10_000)
    store.put("ann", "trip", memory="start", expires=None, expected_turn=0, now=1.0)
    one, other = ((path, name, str(each), *by_hand) for name in "ab")
    with python(CROWD, *one) as first, python(CROWD, *other) as second:
        assert [child.stdout.readline() for child in (first, second)] == ["ready\n"] * 2
        for child in (first, second):
            say(child, "go")
        written = [[child.stdout.readline().strip() for _ in range(each)] for child in (first, second)]
    kept = [record.memory for record in store.turns("ann", "trip")]
    assert len(kept) == 2 * each + 1
    assert [[memory for memory in kept if memory[0] == name] for name in "ab"] == written
    store.close()
