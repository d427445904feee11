"""Where hidden entities, probes and kept entities stand in a text, and the pieces the viewer draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memtrain.corpus.masking import fold, occurrences, survives_folded
from memtrain.report.html.diff import ADDED, KEPT, LOST, diff
from memtrain.types import MASK_TOKEN, TARGET_TOKEN

HIDDEN, PROBED, ENTITY = "h", "p", "e"
"""The document's hidden entity (its mask, or its name in a memory); an entity that a probe hides; any other entity."""
Surface = tuple[str, str, str]
"""Text to look for, kind of mark, reference (numbers of probes, of an entity)."""
Span = tuple[int, int, str, str]
"""``[start, end)`` in the text, kind of mark, reference."""
Piece = list[str | int]
"""``[text, operation, mark, reference]``, without what is 0 or empty at its end; operation as in ``diff.py``."""


def spans_of(text: str, surfaces: Iterable[Surface]) -> list[Span]:
    """Occurrences at word boundaries, ascending and apart: earlier surfaces first, of one kind the longest first."""
    taken = bytearray(len(text))
    order = {HIDDEN: 0, PROBED: 1, ENTITY: 2}
    found: list[Span] = []
    for surface, kind, reference in sorted(surfaces, key=lambda s: (order[s[1]], -len(s[0]))):
        if not surface.strip():
            continue
        if surface in (MASK_TOKEN, TARGET_TOKEN):  # no words: they stand wherever they stand
            places = _plain(text, surface)
        else:
            places = occurrences(text, surface)
        for start, end in places:
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                found.append((start, end, kind, reference))
    return sorted(found)


def _plain(text: str, surface: str) -> list[tuple[int, int]]:
    found, start = [], text.find(surface)
    while start >= 0:
        found.append((start, start + len(surface)))
        start = text.find(surface, start + len(surface))
    return found


def marked(text: str, surfaces: Sequence[Surface]) -> list[Piece]:
    """A text cut at its marks."""
    return _cut(text, 0, spans_of(text, surfaces), KEPT)


def changed(old: str, new: str, surfaces: Sequence[Surface]) -> list[Piece]:
    """The diff of two memories, its pieces cut at the marks of the text each stands in."""
    before, after = spans_of(old, surfaces), spans_of(new, surfaces)
    pieces: list[Piece] = []
    there = here = 0
    for op, text in diff(old, new):
        pieces += _cut(text, there, before, op) if op == LOST else _cut(text, here, after, op)
        there += len(text) if op != ADDED else 0
        here += len(text) if op != LOST else 0
    return pieces


def _cut(text: str, offset: int, spans: Sequence[Span], op: int) -> list[Piece]:
    pieces: list[Piece] = []
    done = 0
    for start, end, kind, reference in spans:
        start, end = max(start - offset, 0), min(end - offset, len(text))
        if start >= end:
            continue
        if start > done:
            pieces.append(_piece(text[done:start], op))
        pieces.append(_piece(text[start:end], op, kind, reference))
        done = end
    if done < len(text):
        pieces.append(_piece(text[done:], op))
    return pieces


def _piece(text: str, op: int, kind: str = "", reference: str = "") -> Piece:
    piece: Piece = [text, op, kind, reference]
    while not piece[-1]:
        piece.pop()
    return piece


def readable(memory: str, folded_surfaces: Sequence[str]) -> list[int]:
    """Numbers of the surfaces that can be read in a memory: any case, accents or markup, whole words."""
    folded = fold(memory)
    return [place for place, key in enumerate(folded_surfaces) if key in folded and survives_folded(folded, key)]
