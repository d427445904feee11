"""What the entity rules and the masking need to know about Unicode: case, marks, scripts written without spaces.

The standard ``re`` has no ``\\p{Lu}``; the classes here are built once from ``unicodedata`` (Basic Multilingual Plane)
as the inside of a ``[...]``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal


def _ranges(belongs: Callable[[str], bool]) -> str:
    """The characters of the Basic Multilingual Plane for which ``belongs`` holds, as the inside of ``[...]``."""
    parts: list[str] = []
    start = None
    for code in range(0x10001):
        inside = code < 0x10000 and belongs(chr(code))
        if inside and start is None:
            start = code
        elif not inside and start is not None:
            parts.append(f"\\u{start:04x}" if start == code - 1 else f"\\u{start:04x}-\\u{code - 1:04x}")
            start = None
    return "".join(parts)


UPPER = _ranges(lambda c: unicodedata.category(c) in ("Lu", "Lt"))
"""Capital letters of every script that has case."""
MARKS = _ranges(lambda c: unicodedata.category(c) in ("Mn", "Mc"))
"""Combining marks: they belong to the letter before them, but ``\\w`` does not match them."""
CURRENCY = _ranges(lambda c: unicodedata.category(c) == "Sc")
"""Currency signs."""
KATAKANA_LETTERS = r"\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"
"""Katakana and its length mark: foreign names in Japanese."""
UNSPACED = (
    r"\u0e00-\u0e7f"  # Thai
    r"\u0e80-\u0eff"  # Lao
    r"\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9d"  # Kana and Japanese marks
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Scripts that put no space between words, so that a word boundary cannot be asked for."""

Kind = Literal["word", "mark", "katakana", "unspaced", "other"]
WORD: Kind = "word"
"""Letter, digit or underscore of a script that puts spaces between words."""
MARK: Kind = "mark"
"""Combining mark."""
KATAKANA: Kind = "katakana"
"""Katakana: written without spaces, but a run of it is one word."""
UNSPACED_LETTER: Kind = "unspaced"
"""Letter of any other script without spaces."""
OTHER: Kind = "other"
"""Space, punctuation, sign."""

_KATAKANA_LETTER = re.compile(f"[{KATAKANA_LETTERS}]")
_UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")


@lru_cache(maxsize=65536)
def kind_of(char: str) -> Kind:
    """What a character means for word boundaries."""
    # Variation selectors are marks by category, but they follow symbols ("❤️Paris").
    if unicodedata.category(char) in ("Mn", "Mc") and not "\ufe00" <= char <= "\ufe0f":
        return MARK
    if _KATAKANA_LETTER.match(char):
        return KATAKANA
    if _UNSPACED_LETTER.match(char):
        return UNSPACED_LETTER
    return WORD if char.isalnum() or char == "_" else OTHER
