"""What a memory added, kept and lost: a diff by words that gives both texts back, sign for sign."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal

Op = Literal[0, 1, -1]
KEPT: Op = 0
ADDED: Op = 1
LOST: Op = -1
Piece = tuple[Op, str]
"""An operation and the text it is about."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts written without spaces: there a sign counts as a word."""
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|\s+|.", re.DOTALL)
_LINES = re.compile(r"[^\n.!?]*[\n.!?]+\s*|[^\n.!?]+")
SHORT = 3
"""Letters of a word that stands in any text."""
MOST_WORDS = 8000
"""Above so many words and spaces in both texts, sentences are compared: words would take seconds."""


def words(text: str) -> list[str]:
    """Words, runs of white space and single other signs; joined they are the text again."""
    return _WORDS.findall(text)


def sentences(text: str) -> list[str]:
    """Sentences and lines; joined they are the text again."""
    return _LINES.findall(text)


def diff(old: str, new: str) -> list[Piece]:
    """Pieces in reading order, of alternating operations, none empty.

    Kept and added pieces joined are ``new``, kept and lost ones ``old``. What two texts share by chance (a comma or
    an article between two changes) counts as changed, so that changes can be read.
    """
    before, after = words(old), words(new)
    if len(before) + len(after) > MOST_WORDS:
        before, after = sentences(old), sentences(new)
    # White space is no anchor: it stands everywhere, and makes the search slow and the result ragged.
    matcher = SequenceMatcher(str.isspace, before, after, autojunk=False)
    return list(_merged(_pieces(matcher, before, after)))


def _pieces(matcher: SequenceMatcher[str], before: Sequence[str], after: Sequence[str]) -> Iterator[Piece]:
    for op, start, end, begin, stop in matcher.get_opcodes():
        lost, added = "".join(before[start:end]), "".join(after[begin:stop])
        at_an_end = (start == 0 and begin == 0) or (end == len(before) and stop == len(after))
        if op == "equal" and (at_an_end or not _by_chance(lost)):
            yield KEPT, lost
        else:
            yield LOST, lost
            yield ADDED, added


def _by_chance(text: str) -> bool:
    """Whether two changes may well share this without meaning it: signs alone, or one short word in small letters."""
    letters = "".join(sign for sign in text if sign.isalnum())
    return not letters or (len(letters) <= SHORT and letters.islower())


def _merged(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Between two kept pieces at most one lost and one added piece, in this order."""
    kept = lost = added = ""
    for op, text in pieces:
        if op == KEPT and (lost or added):
            yield from _nonempty((LOST, lost), (ADDED, added))
            lost = added = ""
        elif op != KEPT and kept:
            yield KEPT, kept
            kept = ""
        if op == KEPT:
            kept += text
        elif op == LOST:
            lost += text
        else:
            added += text
    yield from _nonempty((KEPT, kept), (LOST, lost), (ADDED, added))


def _nonempty(*pieces: Piece) -> Iterator[Piece]:
    return (piece for piece in pieces if piece[1])
