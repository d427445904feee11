"""The store in PostgreSQL: a real server, started here as a user who is not root; skipped where none is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("pg8000", reason="no pg8000: pip install 'memtrain[postgres]'")

from store_model import begun
from test_serving_store import StoreContract

from memtrain.errors import UserError
from memtrain.serving.owners import Owners
from memtrain.serving.store import Store, StoreError

PASSWORD = "p%40ss-word"  # as it stands in an address; p@ss-word


class Server:
    """One cluster in a folder of its own, on a socket and a port of 127.0.0.1; passwords by SCRAM."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self.programs, self.folder, self.user = programs, folder, user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        (folder / "password").write_text("p@ss-word")
        self.program("initdb", "-D", str(folder / "data"), "-U", "me", "-A", "scram-sha-256", "--no-sync",
                     "--pwfile", str(folder / "password"), "--encoding=UTF8", "--locale=C.UTF-8")  # fmt: skip
        self.start()
        self.databases = 0

    def program(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / name, *arguments],
            **self.ownership(),
            cwd=self.folder,
            env={"PATH": os.defpath, "PGPASSWORD": "p@ss-word"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    def ownership(self) -> dict[str, object]:
        return {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder),
                *("-c", "listen_addresses=127.0.0.1", "-c", "synchronous_commit=off"),
                *("-c", "fsync=off"),  # here servers are killed, machines are not
            ],
            **self.ownership(),
            cwd=self.folder,
            stderr=(self.folder / "log").open("a"),
        )
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            try:
                self.program("pg_isready", "-h", str(self.folder), "-p", str(self.port), "-q")
                return
            except AssertionError:
                time.sleep(0.05)
        pytest.fail((self.folder / "log").read_text())

    def stop(self) -> None:
        """At once, as in a crash; in good order it would sync every database first."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(60)

    def database(self) -> str:
        """The address of a new database."""
        self.databases += 1
        self.program("createdb", "-h", str(self.folder), "-p", str(self.port), "-U", "me", f"db{self.databases}")
        return self.url(f"db{self.databases}")

    def emptied(self) -> str:
        """The address of the first database, with nothing in it."""
        connect = ("-h", str(self.folder), "-p", str(self.port), "-U", "me", "-q", "postgres")
        self.program("psql", *connect, "-c", "SET client_min_messages = error; DROP SCHEMA IF EXISTS public CASCADE")
        self.program("psql", *connect, "-c", "CREATE SCHEMA public")
        return self.url("postgres")

    def url(self, database: str) -> str:
        return f"postgresql://me:{PASSWORD}@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if not found:
        pytest.skip("no PostgreSQL here: no initdb in /usr/lib/postgresql/*/bin or on the path")
    user = None
    if os.getuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody here")
    # Not tmp_path: that is closed to other users, and too long for a socket's path.
    folder = Path(tempfile.mkdtemp(prefix="memtrain-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        running = Server(found[-1].parent, folder, user)
        yield running
        running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_server_that_dies_and_comes_back(server: Server) -> None:
    """Told not to wait for the disk, and killed: what was acknowledged is there, and the store goes on by itself."""
    store = Store(server.database())
    begun(store, 40)
    server.stop()
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        store.session("ann", "trip")
    assert "ss-word" not in str(caught.value)
    assert "\n" not in str(caught.value)
    server.start()
    assert store.session("ann", "trip").turn == 40
    assert [record.turn for record in store.turns("ann", "trip")] == list(range(1, 41))
    store.commit(replace(store.session("ann", "trip"), turn=41), 1, 1, 40)
    server.stop()
    server.start()  # meanwhile nobody asked
    assert store.session("ann", "trip").turn == 41
    with store.database.read() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    store.close()


class TestPostgres(StoreContract):
    EXAMPLES = 10

    @pytest.fixture
    def url(self, server: Server) -> str:
        return server.emptied()


def test_a_socket_an_ssl_mode_and_a_shared_database(server: Server) -> None:
    database = server.database().rsplit("/")[-1]
    address = f"postgres://me:{PASSWORD}@/{database}?host={server.folder}&port={server.port}"
    over_socket = Store(address)
    begun(over_socket, 2)
    with over_socket.database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE bookmarks (id int)")
    for mode in ("disable", "prefer"):
        other = Store(f"{server.url(database)}?sslmode={mode}")
        assert other.session("ann", "trip").turn == 2
        other.close()
    with pytest.raises(StoreError, match=r"cannot be reached .*SSL"):
        Store(f"{server.url(database)}?sslmode=require")
    over_socket.close()


def test_owners_in_postgres(server: Server) -> None:
    store = Store(server.database())
    owners = Owners(store)
    key = owners.add("ann")
    assert owners.owner_of(key) == "ann"
    with pytest.raises(UserError, match="already"):
        owners.add("ann")
    assert owners.owner_of("mt-\0") is owners.owner_of("mt-\ud800") is None
    assert owners.revoke("ann")
    assert owners.owner_of(key) is None
    assert owners.owner_of(owners.add("ann")) == "ann"
    store.close()


def test_a_database_that_cannot_be_had_is_named_without_its_password(server: Server) -> None:
    ours = server.database()
    store = Store(ours)
    begun(store, 1)
    with store.database.write() as connection:
        connection.exec_driver_sql("CREATE USER guest PASSWORD 'guest'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = free.getsockname()[1]
    for url, sentence in {
        ours.replace(PASSWORD, "wrong"): "does not let this user in: check user and password",
        ours.replace(f":{PASSWORD}", ""): "does not let this user in: check user and password",
        server.url("nothing"): "does not exist: make the database first",
        ours.replace(str(server.port), str(nobody)): r"cannot be reached \(.*refused\): check the address",
        f"postgresql://me:{PASSWORD}@/x?host=/nowhere": r"cannot be reached \(.*No such file.*\): check",
        f"postgresql://guest:guest@127.0.0.1:{server.port}/template1": "does not let this user make or change its",
    }.items():
        with pytest.raises(StoreError, match=sentence) as caught:
            Store(url)
        said = str(caught.value)
        assert said.startswith("store postgresql")
        assert "\n" not in said
        assert not any(secret in said for secret in (PASSWORD, "p@ss-word", "wrong", ":guest"))
    with store.database.write() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {ours.rsplit('/')[-1]} SET default_transaction_read_only = on")
    store.close()
    with pytest.raises(StoreError, match="can only be read: name the primary server"):
        begun(Store(ours), 1, id="other")


def test_another_kind_of_server_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)

        threading.Thread(target=answer, daemon=True).start()
        url = f"postgresql://me:{PASSWORD}@127.0.0.1:{listening.getsockname()[1]}/db"
        with pytest.raises(StoreError, match=r"cannot be reached|does not speak PostgreSQL's protocol") as caught:
            Store(url)
    assert "\n" not in str(caught.value)


def test_the_password_may_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "p@ss-word")
    store = Store(server.database().replace(f":{PASSWORD}", ""))
    begun(store, 1)
    store.close()


def test_two_who_delete_and_expire_do_not_wait_for_each_other(server: Server) -> None:
    """A session that somebody writes is left for the next round, not waited for."""
    store = Store(server.database())
    for id in ("a", "b"):
        store.put("ann", id, memory="x", expires=10.0, expected_turn=0, now=0.0)
    store.put("bob", "c", memory="x", expires=None, expected_turn=0, now=0.0)
    with store.database.write() as connection:
        connection.exec_driver_sql("SELECT * FROM memtrain_sessions WHERE id = 'a' FOR UPDATE")
        assert store.expire(20.0) == 1
    assert store.expire(20.0) == 1
    assert store.count("bob") == 1
    store.close()
