"""Hiding an entity: exact masking at word boundaries, and a stricter check that nothing of it is left to read.

The published pipeline (MemTrain, arXiv 2606.03197, released code) masks with ``\\b...\\b``, which never matches a
surface whose edge is no word character (``U.S.``, ``$5 million``, ``40%``). Here it is ``(?<!\\w)...(?!\\w)``, with two additions that leave plain Latin text as it is: a combining mark counts as part of its word, and scripts
written without spaces (Chinese, Japanese, Thai...) ask for no boundary among themselves.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from memtrain.corpus.scripts import CURRENCY, KATAKANA, MARKS, UNSPACED

_WORD_NOT_UNSPACED = rf"[^\W{UNSPACED}]"
_KATAKANA = re.compile(f"[{KATAKANA}]")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_CURRENCY = re.compile(f"[{CURRENCY}]")
_PERCENT = "%‰°"

# Characters that the strict check reads as nothing: soft hyphen, zero-width characters, byte-order mark, emphasis.
_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff*`")
_SINGLE_QUOTES = frozenset("'\u2018\u2019\u201a\u201b\u02bc\u02b9\u2032\uff07")
_DOUBLE_QUOTES = frozenset('"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\uff02')
_LONG_CHARS = 10


def _left(edge: str) -> str:
    """Look-behind in front of a surface that starts with ``edge``."""
    if _KATAKANA.match(edge):
        return f"(?<![{KATAKANA}])"
    if _UNSPACED.match(edge):
        return ""
    return f"(?<!{_WORD_NOT_UNSPACED})"


def _right(edge: str) -> str:
    """Look-ahead behind a surface that ends with ``edge``."""
    if _KATAKANA.match(edge):
        return f"(?![{KATAKANA}{MARKS}])"
    if _UNSPACED.match(edge):
        return f"(?![{MARKS}])"
    return f"(?!{_WORD_NOT_UNSPACED}|[{MARKS}])"


def _exact(surface: str) -> str:
    """Regular expression of one surface: literal, any run of white space where it has one, at boundaries."""
    pieces = surface.split()
    if not pieces:
        raise ValueError("a surface to mask must not be blank")
    body = r"\s+".join(re.escape(piece) for piece in pieces)
    return _left(pieces[0][0]) + body + _right(pieces[-1][-1])


@lru_cache(maxsize=8192)
def _compiled(surfaces: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(_exact(surface) for surface in surfaces))


def _pattern(surfaces: Iterable[str]) -> re.Pattern[str]:
    distinct = {" ".join(surface.split()) for surface in surfaces}
    # Longest first, because the first alternative that matches wins: "New York City" before "New York".
    return _compiled(tuple(sorted(distinct, key=lambda surface: (-len(surface), surface))))


def occurrences(text: str, surface: str) -> list[tuple[int, int]]:
    """Spans ``[start, end)`` of ``surface`` in ``text`` at word boundaries, case-sensitive, any white space in it.

    Raises ``ValueError`` for a blank surface.
    """
    return [match.span() for match in _pattern((surface,)).finditer(text)]


def count_occurrences(text: str, surface: str) -> int:
    """How often ``surface`` stands in ``text`` at word boundaries (what :func:`mask` would replace)."""
    return len(occurrences(text, surface))


def mask(text: str, surfaces: Iterable[str], token: str) -> tuple[str, int]:
    """Replace every occurrence of every surface by ``token``; longer surfaces first, each place once.

    Returns the new text and the number of replacements. Raises ``ValueError`` for a blank surface.
    """
    surfaces = tuple(surfaces)
    if not surfaces:
        return text, 0
    return _pattern(surfaces).subn(lambda _: token, text)


class _FoldTable(dict[int, str]):
    """Character -> what a reader takes it for: no case, no accents, plain quotes, hyphens and underscores as space."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char in _INVISIBLE or 0x300 <= code <= 0x36F:
            folded = ""
        elif char.isspace() or char == "_" or char == "−" or unicodedata.category(char) == "Pd":
            folded = " "
        elif char in _SINGLE_QUOTES:
            folded = "'"
        elif char in _DOUBLE_QUOTES:
            folded = '"'
        else:
            parts = unicodedata.normalize("NFKD", char)
            folded = "".join(part for part in parts if not 0x300 <= ord(part) <= 0x36F).casefold()
        self[code] = folded
        return folded


_FOLD = _FoldTable()


@lru_cache(maxsize=128)  # callers ask for many surfaces in the same few texts
def fold(text: str) -> str:
    """``text`` as :func:`survives` compares it: case, accents, quotes, dashes and runs of white space levelled."""
    return " ".join(text.translate(_FOLD).split())


@lru_cache(maxsize=8192)
def _folded_pattern(key: str) -> re.Pattern[str]:
    # "$5 million" is readable in "US$5 million" and "40%" in "40%ige": those edges need no boundary.
    left = "" if _CURRENCY.match(key[0]) else _left(key[0])
    right = "" if key[-1] in _PERCENT or _CURRENCY.match(key[-1]) else _right(key[-1])
    return re.compile(left + " +".join(re.escape(piece) for piece in key.split()) + right)


def survives(text: str, surface: str) -> bool:
    """Whether ``surface`` can still be read in ``text``: any case, accents, quotes, dashes or markup, whole words.

    Stricter than :func:`mask` on purpose: it also finds ``PARIS``, ``New-York`` and ``_Paris_``.
    """
    key = fold(surface)
    return bool(key) and survives_folded(fold(text), key)


def survives_folded(folded_text: str, key: str) -> bool:
    """:func:`survives` for a text and a (not blank) surface that went through :func:`fold` already."""
    return key in folded_text and _folded_pattern(key).search(folded_text) is not None


def _letters_upper(text: str) -> list[bool]:
    return [char.isupper() for char in unicodedata.normalize("NFKD", text) if char.isalpha()]


def _is_variant(surface: str, found: str) -> bool:
    """Whether ``found``, which folds to the same key, is the same thing and not another word ("May", "may")."""
    words = fold(surface).split()
    if len(words) > 1 or len(words[0]) >= _LONG_CHARS or any(char.isdigit() for char in surface):
        return True
    if _letters_upper(surface) == _letters_upper(found) or surface == surface.lower():
        return True
    return found.isupper() and len(words[0]) >= 3


def mask_variants(text: str, surface: str, token: str) -> tuple[str, int]:
    """Replace other spellings of ``surface`` (those :func:`survives` finds) where they must be the same thing.

    Names of several words, long words, and whatever holds a digit are replaced in any case; a single short word only
    in capitals throughout ("PARIS" for "Paris"), with other accents or markup, or, where it is a lower-case word
    itself, at a sentence start. "may" stays for "May": then :func:`survives` still holds and the caller must not use
    the text.
    """
    key = fold(surface)
    folded: list[str] = []
    origin: list[int] = []
    for position, char in enumerate(text):
        part = _FOLD[ord(char)]
        folded.append(part)
        origin.extend([position] * len(part))
    pieces: list[str] = []
    done = count = 0
    for match in _folded_pattern(key).finditer("".join(folded)) if key else ():
        start, end = origin[match.start()], origin[match.end() - 1] + 1
        while end < len(text) and 0x300 <= ord(text[end]) <= 0x36F:  # accents written after their letter
            end += 1
        if start < done or not _is_variant(surface, text[start:end]):
            continue
        pieces += [text[done:start], token]
        done = end
        count += 1
    return "".join(pieces) + text[done:], count
