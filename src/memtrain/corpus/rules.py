"""Entities by rules alone: no model, no word list of one language that it could not do without.

Finds names (runs of capitalised words with particles, initials and abbreviations) in every script that has capitals
(Latin, Greek, Cyrillic, Armenian...), acronyms (``NATO``, ``U.S.``), dates, years, money, percentages, quantities and
numbers in any decimal digits, quoted titles (“...”, «...», 《...》, 「...」), and Katakana runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from memtrain.corpus import patterns
from memtrain.corpus.masking import occurrences
from memtrain.corpus.patterns import ABBREVIATIONS
from memtrain.corpus.scripts import UPPER
from memtrain.types import Entity, Passage

LEARN_PASSAGES = 5_000
"""So many passages, evenly spread, are enough to learn which words are capitalised only at sentence starts."""
TITLE_WORDS = 7

_WORDS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_SENTENCE_START = re.compile(r"(?:^|[.!?…:;]['\"”’»)\]]*\s+|\n\s*|[•*–—-]\s+)['\"“‘«„(\[]*$")
_UPPER = re.compile(f"[{UPPER}]")
_PIECE = re.compile(r"\S+")
# Only a start for corpora too small to learn from; everything else is learnt from the corpus.
_FUNCTION = (
    "a an the this that these those he she it they we you i his her its their our my your in on at by for from with of "
    "to as and or but if when while where who what which how why after before during since until although though "
    "because however there here some many most all both each every no not so then thus such one two first also "
    "der die das ein eine er sie es und im am le la les un une il elle et en el los las una y en o a os as um uma e"
)
_FUNCTION_WORDS = frozenset(_FUNCTION.split())


class RulesFinder:
    """See the module. ``passages`` teach it which words merely start sentences: no list per language is needed."""

    name = "rules"

    def __init__(self, passages: Sequence[Passage] = ()) -> None:
        lower: Counter[str] = Counter()
        capital: Counter[str] = Counter()
        for passage in passages[:: max(1, len(passages) // LEARN_PASSAGES)]:
            self._count(passage.text, lower, capital)
        # A word that is mostly written small inside sentences is not a name where a sentence starts with it.
        self._small = frozenset(word for word, count in lower.items() if count > capital[word]) | _FUNCTION_WORDS
        self._capital = frozenset(word for word, count in capital.items() if count > lower[word])

    @staticmethod
    def _count(text: str, lower: Counter[str], capital: Counter[str]) -> None:
        for match in _WORDS.finditer(text):
            word = match.group()
            if word[0].islower():
                lower[word] += 1
            elif not _starts_sentence(text, match.start()):
                capital[word.lower()] += 1

    def find(self, passage: Passage) -> tuple[Entity, ...]:
        """See :class:`memtrain.corpus.entities.EntityFinder`."""
        text = passage.text
        taken: list[tuple[int, int]] = []
        found: dict[str, tuple[str, list[tuple[int, int]]]] = {}
        for kind, start, end in self._candidates(text):
            if start < end and all(end <= a or b <= start for a, b in taken):
                taken.append((start, end))
                found.setdefault(text[start:end], (kind, []))[1].append((start, end))
        entities = [Entity(surface, tuple(sorted(spans)), kind, self.name) for surface, (kind, spans) in found.items()]
        return tuple(sorted(entities, key=lambda entity: entity.spans))

    def find_many(self, passages: Sequence[Passage]) -> Iterator[tuple[Entity, ...]]:
        """See :class:`memtrain.corpus.entities.EntityFinder`."""
        return map(self.find, passages)

    def limits(self) -> str:
        """See :class:`memtrain.corpus.entities.EntityFinder`."""
        return (
            "rules: cannot tell a person from a place; takes every noun for a name in German; finds no names in "
            "scripts without capitals (Chinese, Korean, Arabic, Hebrew, Devanagari, Thai, Georgian: only numbers, "
            "dates, quoted titles, Katakana and foreign words there)"
        )

    def _candidates(self, text: str) -> Iterator[tuple[str, int, int]]:
        """``(kind, start, end)`` in the order in which they may claim their place."""
        for match in patterns.TITLE.finditer(text):
            if _is_title(match.group()):
                yield "title", match.start(), match.end()
        for kind, pattern in patterns.NUMERIC:
            for match in pattern.finditer(text):
                start, end = match.span()
                if kind == "number" and sum(char.isdigit() for char in match.group()) < 2:
                    continue
                year = kind == "number" and patterns.YEAR.fullmatch(match.group())
                yield ("date" if year else kind), start, end
        for match in patterns.NAMES.finditer(text):
            for start, end in self._names(text, *match.span()):
                surface = text[start:end]
                if patterns.ACRONYM.fullmatch(surface):
                    if not patterns.ROMAN.fullmatch(surface):
                        yield "acronym", start, end
                elif sum(char.isalpha() for char in surface) > 1:
                    yield "name", start, end
        for match in patterns.FOREIGN_RUN.finditer(text):
            yield "name", match.start(), match.end()

    def _names(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Split a run of capitalised words where a word of it only starts a sentence or is a function word."""
        run: list[tuple[int, int]] = []
        for piece in _PIECE.finditer(text, start, end):
            if self._is_small(_bare(piece.group()), _starts_sentence(text, piece.start())):
                yield from self._close(text, run)
                run = []
            elif run or _UPPER.search(piece.group()):  # not a particle that has lost the name before it
                run.append(piece.span())
                if piece.group().endswith(("'s", "’s")):  # "Algeria's Soviet allies" are two things
                    yield from self._close(text, run)
                    run = []
        yield from self._close(text, run)

    def _close(self, text: str, run: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The name of a run of words, unless it is one word that nothing but a sentence start may have capitalised."""
        if not run:
            return
        start, end = self._tidy(text, run[0][0], run[-1][1])
        word = text[start:end]
        alone = len(word.split()) == 1 and word != word.upper() and _starts_sentence(text, start)
        if not alone or word.lower() in self._capital or self._inside_sentence(text, word):
            yield start, end

    @staticmethod
    def _inside_sentence(text: str, word: str) -> bool:
        return any(not _starts_sentence(text, start) for start, _ in occurrences(text, word))

    def _is_small(self, word: str, first: bool) -> bool:
        lowered = word.lower()
        if not _UPPER.match(word) or (len(word) > 1 and word == word.upper()):
            return False
        if lowered in _FUNCTION_WORDS:
            return len(word) > 1 or first or lowered == "i"
        if not first:
            return False
        # A word never seen small is kept here: "Zosimos" in front of "of Panopolis" starts a name.
        return lowered in self._small and lowered not in self._capital

    @staticmethod
    def _tidy(text: str, start: int, end: int) -> tuple[int, int]:
        """Cut possessives, trailing particles and the full stop of a sentence."""
        pieces = [match.span() for match in _PIECE.finditer(text, start, end)]
        while pieces and not _UPPER.search(text, *pieces[-1]):
            pieces.pop()
        if not pieces:
            return start, start
        end = pieces[-1][1]
        surface = text[start:end]
        for tail in ("'s", "’s", "'", "’"):
            if surface.endswith(tail):
                end -= len(tail)
                break
        last = text[pieces[-1][0] : end]
        if last.endswith(".") and last.count(".") == 1 and last[:-1] not in ("Jr", "Sr"):
            end -= 1
            if last[:-1] in ABBREVIATIONS:  # "St." with nothing behind it names nobody
                end = pieces[-2][1] if len(pieces) > 1 else start
        return start, max(start, end)


def _bare(piece: str) -> str:
    """A word without possessive and full stop."""
    for tail in ("'s", "’s"):
        piece = piece.removesuffix(tail)
    return piece.rstrip(".") or piece


def _starts_sentence(text: str, position: int) -> bool:
    """Whether a sentence starts at ``position`` (an abbreviation or initial before it does not end one)."""
    before = text[max(0, position - 12) : position]
    if not _SENTENCE_START.search(before):
        return False
    head = before.rstrip()
    if head.endswith("."):
        last = re.split(r"[\s(\"“]", head[:-1])[-1]
        return not (last in ABBREVIATIONS or (len(last) == 1 and last.isupper()))
    return True


def _is_title(surface: str) -> bool:
    """Whether quoted text looks like a title: short, and capitalised where its script has capitals."""
    if surface != surface.strip() or len(surface.split()) > TITLE_WORDS or surface[-1] in ",;":
        return False
    first = next((char for char in surface if char.isalnum()), "")
    return bool(first) and not first.islower()
