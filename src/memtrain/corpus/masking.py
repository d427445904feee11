"""Hiding an entity: exact masking at word boundaries, and a stricter check that nothing of it is left to read.

The published pipeline (MemTrain, arXiv 2606.03197, released code) masks with ``\\b...\\b``, which never matches a
surface whose edge is no word character (``U.S.``, ``$5 million``, ``40%``). Here it is ``(?<!\\w)...(?!\\w)``, with two
additions that leave plain Latin text as it is: a combining mark counts as part of its word, and scripts written without
spaces (Chinese, Japanese, Thai...) ask for no boundary among themselves. Plain string search and a look at the
neighbouring characters do this: regular expressions for thousands of entities cost more to compile than to run.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from memtrain.corpus.scripts import KATAKANA, MARK, UNSPACED_LETTER, WORD, kind_of

_PERCENT = "%‰°"

# Characters that the strict check reads as nothing: soft hyphen, zero-width characters, byte-order mark, emphasis.
_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff*`")
_SINGLE_QUOTES = frozenset("'\u2018\u2019\u201a\u201b\u02bc\u02b9\u2032\uff07")
_DOUBLE_QUOTES = frozenset('"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\uff02')
_LONG_CHARS = 10


def _apart(inside: str, outside: str) -> bool:
    """Whether a word can end between the edge ``inside`` a surface and the character ``outside`` it."""
    kind, other = kind_of(inside), kind_of(outside)
    if other == MARK:
        return False
    if kind == KATAKANA:
        return other != KATAKANA
    return kind == UNSPACED_LETTER or other != WORD


def _end_of(text: str, start: int, pieces: Sequence[str]) -> int:
    """Where the pieces end that begin at ``start``, with white space between them; -1 where they do not stand there."""
    end = start
    for number, piece in enumerate(pieces):
        if number:
            gap = end
            while end < len(text) and text[end].isspace():
                end += 1
            if end == gap:
                return -1
        if not text.startswith(piece, end):
            return -1
        end += len(piece)
    return end


def _find(text: str, pieces: Sequence[str], left: bool = True, right: bool = True) -> Iterator[tuple[int, int]]:
    """Spans of the pieces in ``text``, apart, first to last; ``left`` and ``right``: ask for a boundary there."""
    start = text.find(pieces[0])
    while start >= 0:
        end = _end_of(text, start, pieces)
        if (
            end >= 0
            and (not left or start == 0 or _apart(text[start], text[start - 1]))
            and (not right or end == len(text) or _apart(text[end - 1], text[end]))
        ):
            yield start, end
            start = text.find(pieces[0], end)
        else:
            start = text.find(pieces[0], start + 1)


def occurrences(text: str, surface: str) -> list[tuple[int, int]]:
    """Spans ``[start, end)`` of ``surface`` in ``text`` at word boundaries, case-sensitive.

    White space in the surface stands for any run of white space. Raises ``ValueError`` for a blank surface.
    """
    pieces = surface.split()
    if not pieces:
        raise ValueError("a surface to look for must not be blank")
    return list(_find(text, pieces))


def count_occurrences(text: str, surface: str) -> int:
    """How often ``surface`` stands in ``text`` at word boundaries (what :func:`mask` would replace)."""
    return len(occurrences(text, surface))


def mask(text: str, surfaces: Iterable[str], token: str) -> tuple[str, int]:
    """Replace every occurrence of every surface by ``token``; where they overlap, the leftmost and then the longest.

    Returns the new text and the number of replacements. Raises ``ValueError`` for a blank surface.
    """
    spans = [span for surface in dict.fromkeys(surfaces) for span in occurrences(text, surface)]
    return _replace(text, sorted(spans, key=lambda span: (span[0], -span[1])), token)


def _replace(text: str, spans: Iterable[tuple[int, int]], token: str) -> tuple[str, int]:
    """Put ``token`` in the place of ascending spans, leaving out those that overlap one before them."""
    pieces: list[str] = []
    done = count = 0
    for start, end in spans:
        if start >= done:
            pieces += [text[done:start], token]
            done = end
            count += 1
    return "".join(pieces) + text[done:], count


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


def _find_folded(folded_text: str, key: str) -> Iterator[tuple[int, int]]:
    """Spans of a folded surface. "$5 million" is readable in "US$5 million": such edges need no boundary."""
    left = unicodedata.category(key[0]) != "Sc"
    right = key[-1] not in _PERCENT and unicodedata.category(key[-1]) != "Sc"
    return _find(folded_text, key.split(), left, right)


def survives(text: str, surface: str) -> bool:
    """Whether ``surface`` can still be read in ``text``: any case, accents, quotes, dashes or markup, whole words.

    Stricter than :func:`mask` on purpose: it also finds ``PARIS``, ``New-York`` and ``_Paris_``.
    """
    key = fold(surface)
    return bool(key) and survives_folded(fold(text), key)


def survives_folded(folded_text: str, key: str) -> bool:
    """:func:`survives` for a text and a (not blank) surface that went through :func:`fold` already."""
    return key in folded_text and any(True for _ in _find_folded(folded_text, key))


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
    spans = []
    for first, last in _find_folded("".join(folded), key) if key else ():
        start, end = origin[first], origin[last - 1] + 1
        while end < len(text) and 0x300 <= ord(text[end]) <= 0x36F:  # accents written after their letter
            end += 1
        if _is_variant(surface, text[start:end]):
            spans.append((start, end))
    return _replace(text, spans, token)
