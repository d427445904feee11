"""Conversations behind an API: where they are kept, who owns them, how they are asked over HTTP (extra ``serve``)."""

from importlib.util import find_spec

from memtrain.errors import UserError

if find_spec("sqlalchemy") is None:
    raise UserError("keeping conversations needs sqlalchemy: pip install 'memtrain[serve]'")
