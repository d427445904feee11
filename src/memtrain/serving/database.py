"""The database below the store: SQLite in a file, or PostgreSQL (extras ``serve``, ``postgres``).

Every transaction that has ended is on the disk: SQLite syncs its log at each commit, PostgreSQL is not let off it. What
goes wrong in the database ends in one sentence, a :class:`StoreError`, which never holds a password.
"""

from __future__ import annotations

import getpass
import os
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from memtrain.errors import UserError, first_line
from memtrain.serving.tables import prepare
from memtrain.serving.tables import schema as schema_table

BUSY_SECONDS = 30.0
"""A transaction waits so long for another process's."""
CONNECTIONS = 16
"""Most connections of one process."""
LOG_BYTES = 64 * 2**20
"""SQLite cuts its log back to this size."""
KINDS = 'a file, "sqlite:///FILE" or "postgresql://USER:PASSWORD@HOST/DATABASE"'
_SSL: dict[str, Any] = {"disable": False, "allow": None, "prefer": None, "require": True}
"""``sslmode`` of a PostgreSQL address -> what pg8000 calls it; the others check the server's certificate."""


class StoreError(UserError):
    """The store does not do its work: full disk, server gone, file damaged. Nothing of the transaction is kept (of a
    PostgreSQL that goes away right at the end of one nobody can tell)."""


class Database:
    """One database, for any number of threads, and for several processes.

    ``url``: see :data:`KINDS`. ``make``: a file that is not there is made. Raises :class:`UserError` where there is no
    such kind or an extra is missing, and :class:`StoreError` where the database cannot be opened or was written by a
    newer version.
    """

    def __init__(self, url: str, make: bool = True) -> None:
        address = _address(url)
        self._sqlite = address.get_backend_name() == "sqlite"
        self.name = f"store {address.database}" if self._sqlite else f"store {address.render_as_string()}"
        """What sentences call it."""
        # Threads of this process that write wait for each other here, in line, rather than by polling the file.
        self._line: AbstractContextManager[Any] = threading.Lock() if self._sqlite else nullcontext()
        with self._said():
            self._engine = (
                _sqlite_engine(address, self.name, make) if self._sqlite else _postgres_engine(address, self.name)
            )
            self._writer = self._engine.execution_options(memtrain_writes=True)
        try:
            with self.write() as connection:
                prepare(connection, self.name)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One transaction that only reads. Raises :class:`StoreError`."""
        with self._said(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, kept (and on the disk) when the block ends well, undone when it raises.

        Of SQLite's there is one at a time. Raises :class:`StoreError`.
        """
        with self._line, self._said(), self._writer.begin() as connection:
            yield connection

    def add(self, connection: sa.Connection, statement: sa.Insert, values: Mapping[str, Any]) -> bool:
        """Inserts a row; ``False`` where one of that name is there (then the transaction can only be undone)."""
        try:
            connection.execute(statement, values)
        except IntegrityError:
            return False
        return True

    def scrub(self) -> None:
        """Has SQLite cut its log, where what was deleted still stands; what is under way may put that off.

        In PostgreSQL it is for the server's vacuum to do.
        """
        if not self._sqlite:
            return
        with self._line, self._said(), closing(self._engine.raw_connection()) as pooled:
            connection: Any = pooled.driver_connection
            connection.execute("PRAGMA busy_timeout = 200")
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeout, sqlite3.Error) as error:
            raise StoreError(f"{self.name} {_reason(error)}") from error


def _address(url: str) -> URL:
    """The address of the database; a text without ``://`` is a file's path. Raises :class:`UserError`."""
    if not url.strip():
        raise UserError(f"the store has no name: give {KINDS}")
    if "://" not in url:
        return URL.create("sqlite", database=url)
    scheme = url.split("://")[0]
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        raise UserError(f"the store's address ({scheme}://...) cannot be read: give {KINDS}") from None
    if scheme in ("sqlite", "sqlite+pysqlite"):
        if address.database in (None, "", ":memory:") or address.query or address.host:
            raise UserError(f'the store "{url}" names no file, so nothing would survive a restart: give {KINDS}')
        return address.set(drivername="sqlite")
    if scheme in ("postgresql", "postgres", "postgresql+pg8000"):
        return address.set(drivername="postgresql+pg8000")
    raise UserError(f'a store cannot be kept in "{scheme}": give {KINDS}')


def _sqlite_engine(address: URL, name: str, make: bool) -> sa.Engine:
    path = Path(str(address.database))
    _sqlite_file(path, name, make)
    engine = sa.create_engine(
        address,
        connect_args={"timeout": BUSY_SECONDS},
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=BUSY_SECONDS,
    )

    @sa.event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, below
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what an owner deletes is overwritten
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")

    @sa.event.listens_for(engine, "begin")
    def began(connection: sa.Connection) -> None:
        # A reader that turns writer half-way can be refused at once; who means to write says so first.
        writes = connection.get_execution_options().get("memtrain_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _sqlite_file(path: Path, name: str, make: bool) -> None:
    """Makes the file, for its owner's eyes only, with its folder; refuses another program's."""
    try:
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file():
            raise StoreError(f"{name} is not a file: name another")
        if not path.exists():
            if not make:
                raise StoreError(f"{name} is not there: name the one that the server keeps")
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened only where it is not there, by one: closing a file that SQLite has open would drop its locks.
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise StoreError(f"{name} cannot be made ({reason}): name a place that can be written to") from None
    if not os.access(path, os.R_OK | os.W_OK):
        raise StoreError(f"{name} may not be read and written by this user: name another, or change its mode")
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
                tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if tables and schema_table.name not in tables:
                    raise StoreError(f"{name} is another program's database: name another file")
                connection.execute("PRAGMA journal_mode = WAL")
                return
        except sqlite3.OperationalError as error:
            # Two processes that turn a new file's log on at the same moment: one is told at once that it is locked.
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _postgres_engine(address: URL, name: str) -> sa.Engine:
    options = {key: value if isinstance(value, str) else value[-1] for key, value in address.query.items()}
    given: dict[str, Any] = {"timeout": 2 * BUSY_SECONDS, "application_name": "memtrain"}
    if host := options.pop("host", ""):
        if host.startswith("/"):
            given["unix_sock"] = f"{host}/.s.PGSQL.{options.pop('port', address.port or 5432)}"
        else:
            address = address.set(host=host)
    if mode := options.pop("sslmode", ""):
        if mode not in (*_SSL, "verify-ca", "verify-full"):
            raise UserError(f"sslmode \"{mode}\" of the store's address is not one of PostgreSQL's")
        given["ssl_context"] = _SSL[mode] if mode in _SSL else ssl.create_default_context()
    if unknown := sorted(set(options) - {"unix_sock"}):
        raise UserError(
            f"the store's address has options that mean nothing here ({', '.join(unknown)}): leave them out"
        )
    given |= options
    # A password out of the environment stands in no list of processes; pg8000 stumbles over none at all.
    given["user"] = address.username or os.environ.get("PGUSER") or getpass.getuser()
    given["password"] = address.password or os.environ.get("PGPASSWORD", "")
    try:
        import pg8000  # noqa: F401
    except ImportError as error:
        raise UserError(f"a PostgreSQL store needs pg8000 ({error}): pip install 'memtrain[postgres]'") from None
    engine = sa.create_engine(
        address.set(query={}),
        connect_args=given,
        isolation_level="READ COMMITTED",
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=BUSY_SECONDS,
        pool_pre_ping=True,
    )

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        # A server told to answer before a commit is on the disk is not believed.
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.commit()

    try:
        with engine.connect():
            return engine
    except DBAPIError:
        raise
    except Exception as error:  # pg8000's own, at a server that speaks something else
        raise StoreError(
            f"{name} does not speak PostgreSQL's protocol ({first_line(error)}): check host and port"
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong, and what to do: the rest of a sentence that begins with the store's name."""
    if isinstance(error, PoolTimeout):
        return f"had no connection free for {BUSY_SECONDS:.0f} s: ask it less at once"
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _sqlite_reason(cause)
    said = cause.args[0] if cause is not None and cause.args else ""
    if isinstance(said, dict):
        return _postgres_reason(str(said.get("C", "")), str(said.get("M", "")))
    why = cause.__cause__ if cause is not None and isinstance(cause.__cause__, OSError) else cause or error
    return f"cannot be reached ({first_line(why)}): check the address, and that the server runs there"


def _sqlite_reason(error: sqlite3.Error) -> str:
    code, said = getattr(error, "sqlite_errorname", ""), first_line(error)
    for start, reason in (
        ("SQLITE_FULL", "has no room left on its disk: free some space there"),
        ("SQLITE_BUSY", f"was kept locked by another process for {BUSY_SECONDS:.0f} s: see what else has it open"),
        ("SQLITE_NOTADB", "is not a SQLite database: name another file"),
        ("SQLITE_CORRUPT", f"is damaged ({said}): move it away, or restore it from a copy"),
        ("SQLITE_READONLY", "cannot be written to: change the mode of the file and its folder, or name another place"),
        ("SQLITE_CANTOPEN", "cannot be opened: see that its folder is there and can be written to"),
        ("SQLITE_IOERR", f"cannot be read or written ({code.removeprefix('SQLITE_')}): check its disk"),
    ):
        if code.startswith(start):
            return reason
    return f"failed ({said})"


def _postgres_reason(code: str, said: str) -> str:
    for start, reason in (
        ("28", "does not let this user in: check user and password"),
        ("3D000", "does not exist: make the database first (createdb)"),
        ("42501", "does not let this user make or change its tables: grant it CREATE on the schema"),
        ("53100", "has no room left on its server's disk: free some space there"),
        ("53300", f"has no connection left: raise max_connections (memtrain takes up to {CONNECTIONS} a process)"),
        ("25006", "can only be read: name the primary server"),
        ("57P", "is shutting down or starting: try again"),
    ):
        if code.startswith(start):
            return f"{reason} ({said})"
    return f"failed ({said})"
