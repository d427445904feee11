"""SQLite's own troubles: where the file stands, who may read it, what is left in it, what may be wrong with it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from store_model import begun, first

from memtrain.errors import UserError
from memtrain.serving.store import Store, StoreError


def test_the_file_is_made_with_its_folder_for_its_owner_alone(tmp_path: Path) -> None:
    for url in (str(tmp_path / "a/b/s.db"), f"sqlite:///{tmp_path}/c/s.db", f"sqlite+pysqlite:///{tmp_path}/d/s.db"):
        store = Store(url)
        begun(store, 1)
        [folder] = [f for f in (tmp_path / "a/b", tmp_path / "c", tmp_path / "d") if (f / "s.db-wal").exists()]
        assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == {
            "s.db": 0o600,
            "s.db-wal": 0o600,
            "s.db-shm": 0o600,
        }
        with store.database.read() as connection:
            pragmas = ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
        assert found == ["wal", 2, 1, 1, 30_000]
        store.close()


def test_what_is_deleted_stands_nowhere_in_the_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    begun(store, 1, id="other")
    secret = "the hotel is the Astoria" * 400  # longer than a page
    store.put("ann", "trip", memory=secret, expires=..., expected_turn=0, now=0.0)
    store.put("ann", "trip", memory=secret + "!", expires=..., expected_turn=1, now=0.0)

    def found() -> bool:
        return any(b"Astoria" in file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".db-shm")

    with store.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM memtrain_sessions WHERE id = 'other'")  # which had Astoria as well
    assert found()
    assert store.delete("ann", "trip")
    assert not found()
    store.close()


def broken(tmp_path: Path) -> Path:
    path = tmp_path / "s.db"
    path.write_bytes(b"not a database, but long enough to have a header " * 100)
    return path


def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "s.db"
    store = Store(str(path))
    begun(store, 200)
    store.close()
    data = bytearray(path.read_bytes())
    data[2000:] = os.urandom(len(data) - 2000)
    path.write_bytes(data)
    return path


def anothers(tmp_path: Path) -> Path:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (id)")
    return path


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "s.db"


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (broken, "is not a SQLite database: name another file"),
        (damaged, "is damaged .*: move it away, or restore it from a copy"),
        (anothers, "is another program's database: name another file"),
        (lambda folder: folder, "is not a file: name another"),
        (lambda folder: Path(os.devnull), "is not a file: name another"),
        (below_a_file, r"cannot be made \(.*\): name a place that can be written to"),
        (lambda folder: Path("/proc/nothing/s.db"), r"cannot be made \(.*\): name a place that can be written to"),
        (lambda folder: folder / "a\0b", r"cannot be made \(embedded null byte\): name a place"),
        (lambda folder: folder / ("x" * 300), r"cannot be made \(File name too long\): name a place"),
    ],
)
def test_a_file_that_will_not_do_is_named_in_one_sentence(
    tmp_path: Path, place: Callable[[Path], Path], sentence: str
) -> None:
    path = place(tmp_path)
    with pytest.raises(StoreError, match=sentence) as caught:
        Store(str(path)).session("ann", "trip")
    assert str(caught.value).startswith(f"store {path} ")
    assert "\n" not in str(caught.value)


def test_another_programs_database_is_left_as_it_was(tmp_path: Path) -> None:
    before = anothers(tmp_path).read_bytes()
    with pytest.raises(StoreError):
        Store(str(tmp_path / "s.db"))
    assert (tmp_path / "s.db").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["s.db"]


def as_nobody(code: str, *arguments: str) -> str:
    """What the code prints, run by a user whom file modes stop (root is stopped by none)."""
    drop = "import os\nfrom memtrain.serving.store import *\nif os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    command = [sys.executable, "-c", f"import sys\n{drop}{code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may look into; those of pytest are closed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_places_that_may_not_be_written_to(open_folder: Path) -> None:
    closed, kept, mine = open_folder / "closed", open_folder / "kept", open_folder / "mine.db"
    for folder in (closed, kept):
        folder.mkdir()
    Store(str(kept / "s.db")).close()
    (kept / "s.db").chmod(0o666)  # the file alone: its log cannot be made beside it
    Store(str(mine)).close()
    mine.chmod(0o444)
    for folder in (closed, kept):
        folder.chmod(0o555)
    said = as_nobody(
        "for path in sys.argv[1:]:\n try: Store(path); print('opened')\n except StoreError as error: print(error)\n",
        *(str(path) for path in (closed / "s.db", kept / "s.db", mine, closed / "deep/er/s.db")),
    )
    one, two, three, four = said.splitlines()
    assert one == f"store {closed}/s.db cannot be made (Permission denied): name a place that can be written to"
    assert two.startswith(f"store {kept}/s.db cannot be ")
    assert three == f"store {mine} may not be read and written by this user: name another, or change its mode"
    assert (
        four == f"store {closed}/deep/er/s.db cannot be made (Permission denied): name a place that can be written to"
    )


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    begun(store, 3)
    before = store.session("ann", "trip")
    with store.database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match=r"s\.db has no room left on its disk: free some space there$"):
        store.commit(replace(before, turn=4, memory="x" * 100_000), 1, 1, 3)
    assert store.session("ann", "trip") == before
    assert len(store.turns("ann", "trip")) == 3
    with store.database.read() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    store.commit(replace(before, turn=4), 1, 1, 3)
    store.close()


def test_a_lock_that_another_process_keeps_is_waited_for_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtrain.serving.database.BUSY_SECONDS", 0.3)
    store = Store(str(tmp_path / "s.db"))
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"s\.db was kept locked by another process"):
        store.commit(first(), 1, 1, 0)
    assert store.session("ann", "trip") is None  # readers go on
    other.execute("ROLLBACK")
    store.commit(first(), 1, 1, 0)
    other.close()
    store.close()


def test_a_file_that_several_open_for_the_first_time_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom memtrain.serving.store import Store\nsys.stdin.readline()\n"
        "print(Store(sys.argv[1]).count('ann'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s.db")]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        assert child.communicate(timeout=60) == ("0\n", "")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "the store has no name"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///s.db?mode=ro", "names no file"),
        ("mysql://root:hunter2@host/db", 'a store cannot be kept in "mysql"'),
        ("postgresql+psycopg2://root:hunter2@host/db", r'cannot be kept in "postgresql\+psycopg2"'),
        ("http://hunter2", 'cannot be kept in "http"'),
        ("postgresql://root:hunter2@host:port/db", "cannot be read"),
        ("postgresql://root:hunter2@host/db?sslmode=maybe", 'sslmode "maybe"'),
        ("postgresql://root:hunter2@host/db?sslrootcert=x&options=y", r"mean nothing here \(options, sslrootcert\)"),
    ],
)
def test_addresses_that_mean_nothing(url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        Store(url)
    assert "hunter2" not in str(caught.value) or url.startswith("http")


@pytest.mark.parametrize(
    ("library", "said"),
    [
        ("sqlalchemy", "keeping conversations needs sqlalchemy: pip install 'memtrain[serve]'"),
        (
            "pg8000",
            "a PostgreSQL store needs pg8000 (import of pg8000 halted; None in sys.modules): pip install "
            "'memtrain[postgres]'",
        ),
    ],
)
def test_a_missing_extra_is_named(library: str, said: str) -> None:
    code = f"""
import importlib.util, sys
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {library!r} else there(name, *rest)
sys.modules[{library!r}] = None
from memtrain.errors import UserError
try:
    from memtrain.serving.store import Store
    Store("postgresql://me@127.0.0.1:1/db")
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == said
