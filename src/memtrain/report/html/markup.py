"""Markup built from Python values. Whatever is not markup already is escaped, so no text of a run becomes any."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Iterable[Any] | None
_VOID = frozenset({"br", "meta", "path", "line", "circle", "rect"})
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127), "\ufffd")
_JSON = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def text(value: str) -> Html:
    """A text as markup: escaped, and without control characters, which HTML has no place for."""
    return value if isinstance(value, Html) else Html(html.escape(value.translate(_CONTROLS), quote=True))


def join(children: Iterable[Child]) -> Html:
    """Children one after the other; strings are escaped, lists flattened, ``None`` left out."""
    parts = []
    for child in children:
        if isinstance(child, str):
            parts.append(text(child))
        elif child is not None:
            parts.append(join(child))
    return Html("".join(parts))


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """One element. In attribute names a last ``_`` is dropped and other ones become ``-``; ``None`` and ``False`` leave
    an attribute out, ``True`` gives it without a value."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{text(str(value))}"')
    opening = " ".join(words)
    if name in _VOID and not children:
        return Html(f"<{opening}/>" if name not in ("br", "meta") else f"<{opening}>")
    return Html(f"<{opening}>{join(children)}</{name}>")


def json_block(name: str, data: object) -> Html:
    """Data for the script: an element that is never run, whose text cannot end it."""
    packed = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_JSON)
    return Html(f'<script type="application/json" id="{text(name)}">{packed}</script>')
