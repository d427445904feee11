"""The tables of the store (extra ``serve``), the same in SQLite and PostgreSQL.

Names begin with ``memtrain_``, for a database that other programs use as well.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Double, ForeignKeyConstraint, Index, Integer, MetaData, String, Table, Text

from memtrain.errors import UserError

SCHEMA_VERSION = 1
"""Of the tables below, kept in the database: a later version finds out from it what to change."""
NAME_CHARS = 255
"""Longest owner, session id and history hash."""
_CREATING = 0x6D656D74
"""The lock that PostgreSQL gives to one creator of the tables at a time ("memt")."""

METADATA = MetaData()


def _name() -> String:
    """A short text that is compared and sorted by its code points, whatever the database's language."""
    return String(NAME_CHARS).with_variant(String(NAME_CHARS, collation="C"), "postgresql")


schema = Table("memtrain_schema", METADATA, Column("version", Integer, nullable=False))

owners = Table(
    "memtrain_owners",
    METADATA,
    Column("name", _name(), primary_key=True),
    Column("key_hash", String(64), nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("revoked", Double),
)


def _state() -> list[Column[Any]]:
    # The long ones last: what stands before them is read without them.
    return [Column("recent", Text, nullable=False), Column("memory", Text, nullable=False)]


sessions = Table(
    "memtrain_sessions",
    METADATA,
    Column("owner", _name(), primary_key=True),
    Column("id", _name(), primary_key=True),
    Column("turn", Integer, nullable=False),
    Column("version", String(32), nullable=False),
    Column("history", _name(), nullable=False),
    Column("model", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("expires", Double),
    *_state(),
)
turns = Table(
    "memtrain_turns",
    METADATA,
    Column("owner", _name(), primary_key=True),
    Column("id", _name(), primary_key=True),
    Column("turn", Integer, primary_key=True),
    Column("history", _name(), nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("created", Double, nullable=False),
    *_state(),
    ForeignKeyConstraint(["owner", "id"], [sessions.c.owner, sessions.c.id], ondelete="CASCADE"),
)
Index("memtrain_sessions_history", sessions.c.owner, sessions.c.history)
Index("memtrain_sessions_live", sessions.c.owner, sessions.c.expires)
Index(
    "memtrain_sessions_expires",
    sessions.c.expires,
    sqlite_where=sessions.c.expires.is_not(None),
    postgresql_where=sessions.c.expires.is_not(None),
)


def prepare(connection: sa.Connection, name: str) -> None:
    """Makes the tables in a database that has none, inside the transaction of ``connection``.

    ``name`` is what the database is called in the :class:`UserError` for tables of a newer version, or none of ours.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATING})
    if not sa.inspect(connection).has_table(schema.name):
        METADATA.create_all(connection)
        connection.execute(schema.insert().values(version=SCHEMA_VERSION))
        return
    found = connection.execute(schema.select()).scalars().all()
    if len(found) != 1 or found[0] < 1:
        raise UserError(f"{name} does not say which version of its tables it has: restore it from a copy")
    if found[0] > SCHEMA_VERSION:
        raise UserError(
            f"{name} was written by a newer memtrain (its tables are version {found[0]}, this memtrain knows "
            f"{SCHEMA_VERSION}): upgrade memtrain, or name another store"
        )
