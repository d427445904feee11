"""Passages of the corpus as noise, with sentences hidden between theirs.

A haystack is a run of documents under "Document i:" headings. Hidden sentences stand before a sentence of a document
or at the very end, at depths drawn from forty steps (RULER's ``essay`` haystack). Where the pool is used up it comes
again in another order, so that any length can be filled.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from memtrain.corpus.compose import SEPARATOR, heading
from memtrain.corpus.counting import CountTokens
from memtrain.errors import UserError
from memtrain.evaluation.ruler.sample import Needle, TooShort
from memtrain.types import Passage

DEPTHS = tuple(step / 39 for step in range(40))
"""Where a hidden sentence may stand, as a share of the sentences before it."""

_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][」』”’）]*\s*")
_INITIAL = re.compile(r"(?:^|[\s.(])[^\W\d_]$")


@dataclass(frozen=True)
class Unit:
    """One document of a haystack."""

    pieces: tuple[str, ...]
    """Its sentences with the space after them: joined they are its text."""
    n_tokens: int
    """Tokens of its text; an estimate that its place may change a little."""
    passage: Passage | None = None
    """Where it comes from; None where it was cut or made up."""


@dataclass(frozen=True)
class Hay:
    """A text with hidden sentences."""

    text: str
    paragraphs: tuple[str, ...]
    passages: tuple[Passage | None, ...]
    needles: tuple[Needle, ...]
    """In the order of the text, placed."""


def sentences(text: str) -> tuple[str, ...]:
    """Slices of the text that end where a sentence does, with the space after it; joined they are the text again."""
    found, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        # "J. Smith" and "U.S. Army": a single letter before the full stop is an initial.
        if not (match[0][0] == "." and _INITIAL.search(text[max(start, match.start() - 2) : match.start()])):
            found.append(text[start : match.end()])
            start = match.end()
    return (*found, text[start:]) if start < len(text) else tuple(found)


@dataclass
class PassagePool:
    """Passages as documents of haystacks; each is counted once."""

    passages: Sequence[Passage]
    """Never empty."""
    count_tokens: CountTokens
    _lengths: dict[int, int] = field(default_factory=dict)

    def units(self, rng: random.Random, telling: Collection[str]) -> Iterator[Unit]:
        """All passages without any of the telling strings, over and over, each time in a new order.

        Raises :class:`UserError` where no passage is left.
        """
        while True:
            given = False
            for index in rng.sample(range(len(self.passages)), len(self.passages)):
                passage = self.passages[index]
                if not any(word in passage.text for word in telling):
                    given = True
                    yield Unit(sentences(passage.text), self._length(index), passage)
            if not given:
                raise UserError("the corpus has no held-out passage to hide anything in; give a corpus with more text")

    def _length(self, index: int) -> int:
        if index not in self._lengths:
            (self._lengths[index],) = self.count_tokens([self.passages[index].text])
        return self._lengths[index]


def least_sentences(needles: Sequence[Needle]) -> int:
    """Fewest sentences of a haystack: one for every hidden one, so that something can stand between them."""
    return max(1, len(needles))


def smallest(units: Iterator[Unit], needles: Sequence[Needle], count_tokens: CountTokens) -> int:
    """Tokens of the shortest text that :func:`fill` would make of the same units and needles."""
    least, drawn = least_sentences(needles), list[Unit]()
    while _n_sentences(drawn) < least:
        drawn.append(next(units))
    (n_tokens,) = count_tokens([_render(_first(drawn, least), needles).text])
    return n_tokens


def fill(units: Iterator[Unit], needles: Sequence[Needle], tokens: int, count_tokens: CountTokens) -> tuple[Hay, int]:
    """A text of at most ``tokens`` tokens, as full as whole sentences fill it, and its length.

    Raises :class:`TooShort` where not even as many sentences as needles fit beside the needles.
    """
    least = least_sentences(needles)
    drawn = list[Unit]()
    total = sum(count_tokens([f"{needle.text} " for needle in needles])) if needles else 0
    heads = dict[int, int]()  # digits of the number -> tokens of the heading
    have = 0
    while total <= tokens or have < least:
        digits = len(str(len(drawn) + 1))
        if digits not in heads:
            (heads[digits],) = count_tokens([SEPARATOR + heading(10 ** (digits - 1))])
        drawn.append(next(units))
        total += heads[digits] + drawn[-1].n_tokens
        have += len(drawn[-1].pieces)
    while True:
        hay = _render(drawn, needles)
        (n_tokens,) = count_tokens([hay.text])
        if n_tokens <= tokens:
            return hay, n_tokens
        if _n_sentences(drawn) == least:
            raise TooShort(n_tokens)
        drawn = _shorter(drawn, n_tokens - tokens, least, count_tokens)


def _n_sentences(units: Sequence[Unit]) -> int:
    return sum(len(unit.pieces) for unit in units)


def _first(units: Sequence[Unit], count: int) -> list[Unit]:
    """The first ``count`` sentences; the document that the cut goes through is no passage any more."""
    kept = list[Unit]()
    for unit in units:
        if count <= 0:
            break
        kept.append(unit if len(unit.pieces) <= count else replace(unit, pieces=unit.pieces[:count], passage=None))
        count -= len(kept[-1].pieces)
    return kept


def _shorter(units: Sequence[Unit], excess: int, least: int, count_tokens: CountTokens) -> list[Unit]:
    """Without the last sentences that make up the excess; at least one less, ``least`` are kept."""
    keep = _n_sentences(units)
    for unit in reversed(units):
        for length in reversed(count_tokens(list(unit.pieces))):
            if keep == least or excess <= 0:
                return _first(units, keep)
            keep -= 1
            excess -= length
    return _first(units, keep)


def _render(units: Sequence[Unit], needles: Sequence[Needle]) -> Hay:
    """Documents under headings, each needle before the sentence that its depth points at."""
    total = _n_sentences(units)
    waiting: dict[int, list[Needle]] = {}
    for needle in sorted(needles, key=lambda needle: needle.depth):
        waiting.setdefault(int(total * needle.depth), []).append(needle)
    parts, paragraphs, placed = list[str](), list[str](), list[Needle]()
    offset = sentence = 0
    for number, unit in enumerate(units, 1):
        head, body = heading(number), ""
        for piece in unit.pieces:
            for needle in waiting.get(sentence, ()):
                placed.append(replace(needle, offset=offset + len(head) + len(body)))
                body += f"{needle.text} "
            body += piece
            sentence += 1
        for needle in waiting.get(total, ()) if sentence == total else ():
            body = f"{body.rstrip()} "
            placed.append(replace(needle, offset=offset + len(head) + len(body)))
            body += needle.text
        paragraphs.append(body.rstrip())
        parts.append(head + paragraphs[-1])
        offset += len(parts[-1]) + len(SEPARATOR)
    passages = tuple(unit.passage for unit in units)
    return Hay(SEPARATOR.join(parts), tuple(paragraphs), passages, tuple(placed))
