"""``memtrain keys``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from memtrain.commands.serve import DEFAULT_STORE, StoreUrl
from memtrain.errors import UserError


def keys(
    action: Annotated[
        Positional[Literal["add", "list", "revoke"]],
        arg(help="add: an owner and a key; revoke: the key opens no more."),
    ],
    name: Annotated[Positional[str], arg(metavar="NAME", help="Owner that is added or whose key is revoked.")] = "",
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Keys for `memtrain serve`: once there is one, every request needs one, and owners see only their own sessions.

    add prints the key, and the key alone, to standard output: it is kept nowhere and cannot be shown again. A key that
    is revoked opens nothing from the next request on; the owner's sessions stay, for the key that is added next.

    Example: memtrain keys add alice > alice.key

    Example: memtrain keys revoke alice
    """
    if (action == "list") == bool(name):
        raise UserError(f"memtrain keys {action} takes {'no name' if name else 'the name of an owner: add NAME'}")
    from memtrain.serving.owners import Owners
    from memtrain.serving.store import Store

    opened = Store(store, make=action == "add")
    try:
        owners = Owners(opened)
        if action == "add":
            key = owners.add(name)
            print(key, flush=True)
            kept = opened.count(name)
            has = f" It opens the {kept} session(s) that {name} has already." if kept else ""
            print(f"The key of {name}, shown this once.{has}", file=sys.stderr)
        elif action == "revoke":
            if not owners.revoke(name):
                raise UserError(f'{opened.database.name} has no owner "{name}" with a key: see memtrain keys list')
            print(f"The key of {name} opens nothing any more. Sessions kept: {opened.count(name)}.", file=sys.stderr)
        else:
            for owner in owners.names():
                state = "key" if owner.revoked is None else f"revoked {_day(owner.revoked)}"
                print(f"{owner.name}\tsince {_day(owner.created)}\t{state}")
    finally:
        opened.close()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
