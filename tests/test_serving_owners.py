"""Owners and their keys, and ``memtrain keys``."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sqlalchemy")

from store_model import begun, first

from memtrain.commands.keys import keys
from memtrain.errors import UserError
from memtrain.serving.owners import Owners
from memtrain.serving.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(str(path))
    yield store
    store.close()


@pytest.fixture
def owners(store: Store) -> Owners:
    return Owners(store)


def test_a_key_opens_for_its_owner_until_it_is_revoked(path: Path, owners: Owners) -> None:
    assert not owners.exist()
    assert owners.names() == []
    ann, bob = owners.add("ann"), owners.add("bob")
    assert [owners.owner_of(key) for key in (ann, bob)] == ["ann", "bob"]
    assert [(o.name, o.revoked is None) for o in owners.names()] == [("ann", True), ("bob", True)]
    other = Store(str(path))  # as in a server that runs
    serving = Owners(other)
    assert serving.owner_of(ann) == "ann"
    assert owners.revoke("ann")
    assert serving.owner_of(ann) is None
    assert serving.owner_of(bob) == "bob"
    assert [(o.name, o.revoked is None) for o in serving.names()] == [("ann", False), ("bob", True)]
    again = serving.add("ann")
    assert owners.owner_of(again) == "ann"
    assert owners.owner_of(ann) is None
    other.close()


def test_the_last_keys_end_opens_the_server_to_nobody(owners: Owners) -> None:
    owners.add("ann")
    assert owners.revoke("ann")
    assert not owners.revoke("ann")
    assert not owners.revoke("nobody")
    assert owners.exist()


def test_a_key_is_256_random_bits_and_stands_nowhere(tmp_path: Path, owners: Owners, store: Store) -> None:
    made = [owners.add(f"owner{n}") for n in range(20)]
    assert len(set(made)) == 20
    for key in made:
        assert key.startswith("mt-")
        assert len(base64.urlsafe_b64decode(key.removeprefix("mt-") + "=")) == 32
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(key.encode() in kept or key.removeprefix("mt-").encode() in kept for key in made)
    assert all(hashlib.sha256(key.encode()).hexdigest().encode() in kept for key in made)


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", ".", "../x", "a/b", "a\n", "a\0", "ä", "a" * 65, "'--", "%"])
def test_names_that_no_owner_may_have(owners: Owners, name: str) -> None:
    with pytest.raises(UserError, match="cannot name an owner"):
        owners.add(name)
    assert not owners.exist()


def test_a_name_belongs_to_one(owners: Owners) -> None:
    key = owners.add("ann@example.org")
    with pytest.raises(UserError, match=r'owner "ann@example\.org" already: .*memtrain keys revoke ann@example\.org'):
        owners.add("ann@example.org")
    assert owners.owner_of(key) == "ann@example.org"
    assert owners.owner_of(owners.add("Ann@example.org")) == "Ann@example.org"


def test_of_many_who_add_one_name_at_once_one_gets_a_key(owners: Owners) -> None:
    start = threading.Barrier(8)

    def add(n: int) -> str:
        start.wait()
        try:
            return owners.add("ann")
        except UserError:
            return ""

    with ThreadPoolExecutor(8) as threads:
        [key] = filter(None, threads.map(add, range(8)))
    assert owners.owner_of(key) == "ann"


def test_what_is_no_key_opens_nothing(owners: Owners, store: Store) -> None:
    key = owners.add("ann")
    with store.database.read() as connection:
        hashed = connection.exec_driver_sql("SELECT key_hash FROM memtrain_owners").scalar_one()
    for wrong in (
        *("", "mt-", key[:-1], key + "=", key + " ", " " + key, key.upper(), key.removeprefix("mt-"), f"Bearer {key}"),
        *("mt-" + hashed, hashed, "mt-' OR '1'='1", "mt-%", "mt-\0", "mt-\ud800", key + "\0", "mt-" + "x" * 10**6),
    ):
        assert owners.owner_of(wrong) is None
    assert owners.owner_of(key) == "ann"


@given(text=st.text())
def test_any_text_is_asked_without_trouble(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    assert shared(tmp_path_factory).owner_of("mt-" + text) is None
    assert shared(tmp_path_factory).owner_of(text) is None


def shared(folders: pytest.TempPathFactory, made: dict[str, Owners] = {}) -> Owners:  # noqa: B006
    """One store for all examples."""
    if not made:
        made["owners"] = Owners(Store(str(folders.mktemp("owners") / "s.db")))
        made["owners"].add("ann")
    return made["owners"]


# ---- memtrain keys --------------------------------------------------------------------------------------------------


def test_the_command_prints_the_key_alone(path: Path, capsys: pytest.CaptureFixture[str], store: Store) -> None:
    keys("add", "ann", str(path))
    out, err = capsys.readouterr()
    assert re.fullmatch(r"mt-[\w-]{43}\n", out)
    assert out.strip() not in err
    assert err == "The key of ann, shown this once.\n"
    assert Owners(store).owner_of(out.strip()) == "ann"
    begun(store, 1)
    store.commit(first("ann", "two"), 1, 1, 0)
    keys("list", store=str(path))
    assert re.fullmatch(r"ann\tsince \d{4}-\d\d-\d\d \d\d:\d\d UTC\tkey\n", capsys.readouterr().out)
    keys("revoke", "ann", str(path))
    assert capsys.readouterr().err == "The key of ann opens nothing any more. Sessions kept: 2.\n"
    assert Owners(store).owner_of(out.strip()) is None
    keys("list", store=str(path))
    assert "\trevoked 20" in capsys.readouterr().out
    keys("add", "ann", str(path))
    assert "It opens the 2 session(s) that ann has already." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("action", "name", "sentence"),
    [
        ("add", "", "memtrain keys add takes the name of an owner"),
        ("revoke", "", "memtrain keys revoke takes the name of an owner"),
        ("list", "ann", "memtrain keys list takes no name"),
        ("revoke", "ann", r'sessions\.db has no owner "ann" with a key: see memtrain keys list'),
        ("add", "a b", '"a b" cannot name an owner'),
    ],
)
def test_commands_that_mean_nothing(store: Store, path: Path, action: str, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        keys(action, name, str(path))  # type: ignore[arg-type]


def test_only_add_makes_a_store(path: Path) -> None:
    for action, name in (("list", ""), ("revoke", "ann")):
        with pytest.raises(UserError, match=r"sessions\.db is not there: name the one"):
            keys(action, name, str(path))  # type: ignore[arg-type]
        assert not path.exists()


def test_its_help_loads_no_database() -> None:
    code = "import sys, memtrain.commands.keys\nsys.exit(any(m in sys.modules for m in ('sqlalchemy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
