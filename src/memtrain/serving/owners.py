"""Who may ask: named owners, each with one key, of which the store knows the hash alone.

A key is 256 random bits. There is nothing in it to guess, so one SHA-256 hides it as well as a slow, salted password
hash would: those make up for passwords that people think of, and cost every request their slowness.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

import sqlalchemy as sa

from memtrain.errors import UserError
from memtrain.serving.store import Store
from memtrain.serving.tables import owners as table

PREFIX = "mt-"
KEY_BYTES = 32
MOST_CHARS = 256
"""Whatever is longer is no key, and is not hashed."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class Owner:
    """One owner, without the key."""

    name: str
    """Unique."""
    created: float
    """When the key was made: seconds since 1970, UTC."""
    revoked: float | None
    """When it was revoked; ``None`` where it opens."""


def key_hash(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Owners:
    """The owners in a store. Nothing is remembered between calls: a revoked key is refused from the next request on."""

    def __init__(self, store: Store) -> None:
        self._database = store.database

    def add(self, name: str) -> str:
        """Makes an owner and gives the key, which cannot be had again. An owner whose key was revoked gets a new one.

        Raises :class:`UserError` for a name that is taken or has other characters than a name may have.
        """
        if not _NAME.fullmatch(name):
            raise UserError(
                f'"{name}" cannot name an owner: take 1 to 64 of A-Z a-z 0-9 . _ @ -, the first a letter or a digit'
            )
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        values = {"key_hash": key_hash(key), "created": time.time(), "revoked": None}
        with self._database.write() as connection:
            again = table.update().where(table.c.name == name, table.c.revoked.is_not(None)).values(values)
            if connection.execute(again).rowcount or self._database.add(
                connection, table.insert(), {"name": name, **values}
            ):
                return key
            raise UserError(
                f'there is an owner "{name}" already: for another key revoke this one first '
                f"(memtrain keys revoke {name})"
            )

    def revoke(self, name: str) -> bool:
        """Has the owner's key open nothing from now on; ``False`` where there is no such owner or it did not open.

        Sessions stay, for the key that :meth:`add` makes for the name next.
        """
        where = (table.c.name == name, table.c.revoked.is_(None))
        with self._database.write() as connection:
            return connection.execute(table.update().where(*where).values(revoked=time.time())).rowcount > 0

    def names(self) -> list[Owner]:
        """All owners by name, those with a revoked key too."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(table.c.name, table.c.created, table.c.revoked).order_by(table.c.name))
            return [Owner(*row) for row in rows]

    def owner_of(self, key: str) -> str | None:
        """Whose key it is; ``None`` for one that opens nothing."""
        if not key.startswith(PREFIX) or len(key) > MOST_CHARS:
            return None
        asked = key_hash(key)
        columns = sa.select(table.c.name, table.c.key_hash)
        with self._database.read() as connection:
            row = connection.execute(columns.where(table.c.key_hash == asked, table.c.revoked.is_(None))).one_or_none()
        return row.name if row is not None and hmac.compare_digest(row.key_hash, asked) else None

    def exist(self) -> bool:
        """Whether there was ever an owner: the last key's end does not open the server to everybody."""
        with self._database.read() as connection:
            return connection.execute(sa.select(sa.exists(sa.select(table.c.name)))).scalar_one()
