"""What the store says to the database. Every value is a bound parameter; every statement but one names the owner."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import bindparam, func, or_

from memtrain.serving.tables import sessions, turns

_S, _T = sessions.c, turns.c
_LIVE = or_(_S.expires.is_(None), _S.expires > bindparam("now"))
_OWNER: sa.BindParameter[str] = bindparam("owner")
_ID: sa.BindParameter[str] = bindparam("id")
_THIS = (_S.owner == _OWNER, _S.id == _ID)
_ITS_TURNS = (_T.owner == _OWNER, _T.id == _ID)
_KEPT = turns.select().join(sessions, (_S.owner == _T.owner) & (_S.id == _T.id)).where(*_ITS_TURNS, _LIVE)

ONE = sessions.select().where(*_THIS, _LIVE)
"""owner, id, now."""
ONE_TO_WRITE = ONE.with_for_update()
"""The same, and nobody else changes it before this transaction ends."""
PAGE = sessions.select().where(_S.owner == _OWNER, _S.id > bindparam("after"), _LIVE).order_by(_S.id)
PAGE = PAGE.limit(bindparam("limit", type_=sa.Integer))
"""owner, after, limit, now."""
COUNT = sa.select(func.count()).select_from(sessions).where(_S.owner == _OWNER, _LIVE)
"""owner, now."""
BY_HISTORY = (
    sessions.select()
    .where(_S.owner == _OWNER, _S.history == bindparam("history"), _LIVE)
    # LIKE would read % and _ in the prefix, and in SQLite take small letters for big ones.
    .where(func.substr(_S.id, 1, func.length(bindparam("prefix", type_=sa.Text))) == bindparam("prefix"))
    .order_by(_S.updated.desc(), _S.id.desc())
    .limit(1)
)
"""owner, history, prefix, now."""

TURNS = _KEPT.order_by(_T.turn)
"""owner, id, now: oldest first."""
TURN_AT = _KEPT.where(_T.history == bindparam("history")).order_by(_T.turn.desc()).limit(1)
"""owner, id, history, now."""
ADD_TURN = turns.insert()
DROP_TURNS = turns.delete().where(*_ITS_TURNS, or_(_T.turn >= bindparam("first"), _T.turn <= bindparam("last_old")))
"""owner, id, first, last_old: those from ``first`` on, and those up to ``last_old``."""

ADD = sessions.insert()
UPDATE = (
    sessions.update()
    .where(_S.owner == bindparam("its_owner"), _S.id == bindparam("its_id"), _LIVE)
    .where(
        _S.turn == bindparam("expected"), or_(bindparam("seen", type_=sa.Text) == "", _S.version == bindparam("seen"))
    )
)
"""its_owner, its_id, expected, seen (a version or ""), now, and the new values."""

DELETE = sessions.delete().where(*_THIS)
"""owner, id; the turns go with it, here and below."""
DELETE_EXPIRED = DELETE.where(_S.expires <= bindparam("now"))
"""owner, id, now."""
LOCK_ALL = sa.select(_S.id).where(_S.owner == _OWNER, _LIVE).order_by(_S.id).with_for_update()
"""owner, now: in one order, so that two who delete everything do not wait for each other."""
DELETE_ALL = sessions.delete().where(_S.owner == _OWNER)
"""owner."""
EXPIRE = sessions.delete().where(
    sa.tuple_(_S.owner, _S.id).in_(
        # A session that somebody is writing right now waits for the next time.
        sa.select(_S.owner, _S.id).where(_S.expires <= bindparam("now")).with_for_update(skip_locked=True)
    )
)
"""now: of all owners."""
