"""Long texts around gold paragraphs: "Document i:" heads, distractors up to a length in tokens, seeded, places kept.

As the long-text QA sets of MemAgent (arXiv 2507.02259) and MemTrain (arXiv 2606.03197) are made: gold paragraphs at
random places between paragraphs that belong to other questions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from memtrain.corpus.compose import SEPARATOR, heading
from memtrain.corpus.counting import CountTokens
from memtrain.corpus.masking import count_occurrences
from memtrain.errors import UserError
from memtrain.qa.questions import Question
from memtrain.types import Passage

SHORTEST_TELLING = 3
"""Answers of fewer letters stand in any text by chance: they keep no distractor out."""
TELL_NOTHING = frozenset({"yes", "no"})
FULL = 0.9
"""Share of the length that a pool must be able to fill."""
PATIENCE = 64
"""Paragraphs that do not fit any more, after which a nearly full text is full."""


@dataclass(frozen=True)
class Haystack:
    """A question in a long text."""

    question: Question
    text: str
    gold_places: tuple[int, ...]
    """Numbers of the gold documents, counted from 1."""
    gold_offsets: tuple[int, ...]
    """Where they begin in ``text``, in characters."""
    paragraphs: tuple[str, ...]
    """Documents in order, without heads."""
    n_tokens: int
    """Sum over documents with their heads, by the counting tokenizer."""
    seed: int

    @property
    def n_documents(self) -> int:
        """Gold and distractors."""
        return len(self.paragraphs)


@dataclass
class HaystackMaker:
    """Makes haystacks from one pool; counts every paragraph once."""

    pool: Sequence[Passage]
    """Distractors for every question, besides those of its own."""
    count_tokens: CountTokens
    _lengths: dict[str, int] = field(default_factory=dict)

    def needs(self, question: Question) -> int:
        """Tokens that the gold paragraphs alone take."""
        return sum(self._length(passage) for passage in dict.fromkeys(question.gold))

    def make(self, question: Question, tokens: int, seed: int) -> Haystack:
        """A text of at most ``tokens`` tokens, as full as paragraphs fill it; the same for the same arguments.

        The question's own distractors come first, then the pool in an order drawn from the seed. Left out is what has
        a gold paragraph's title or text, or holds an answer. Raises :class:`UserError` where the gold paragraphs do not
        fit, are not all there, or the pool is too small.
        """
        if not question.gold or not question.complete:
            raise UserError(
                f"question {question.id} comes without all of its gold paragraphs; leave it out, or give data with them"
            )
        rng = random.Random(f"{seed}/{question.id}/{tokens}")
        chosen = list(dict.fromkeys(question.gold))
        total = sum(self._length(passage) for passage in chosen)
        if total > tokens:
            raise UserError(
                f"question {question.id}: its gold paragraphs take {total} tokens, more than the length of {tokens}; "
                f"set lengths of at least {total}"
            )
        taken = {passage.text for passage in chosen}
        titles = {passage.title for passage in chosen if passage.title}
        too_long = 0
        for passage in (*question.distractors, *rng.sample(self.pool, len(self.pool))):
            if total + self._length(passage) > tokens:
                too_long += 1
                if total >= tokens * FULL and too_long >= PATIENCE:
                    break
                continue  # a shorter one may still fit
            if passage.text in taken or passage.title in titles or self._tells(question, passage):
                continue
            taken.add(passage.text)
            chosen.append(passage)
            total += self._length(passage)
        if not too_long and total < tokens * FULL:
            raise UserError(
                f"question {question.id}: all paragraphs together give {total} of {tokens} tokens; give more "
                "distractors, or lower the length"
            )
        rng.shuffle(chosen)
        return self._write(question, chosen, total, seed)

    def _write(self, question: Question, chosen: Sequence[Passage], total: int, seed: int) -> Haystack:
        parts, places, offsets, at = list[str](), list[int](), list[int](), 0
        for number, passage in enumerate(chosen, 1):
            if passage in question.gold:
                places.append(number)
                offsets.append(at)
            parts.append(_document(number, passage))
            at += len(parts[-1]) + len(SEPARATOR)
        paragraphs = tuple(_body(passage) for passage in chosen)
        return Haystack(question, SEPARATOR.join(parts), tuple(places), tuple(offsets), paragraphs, total, seed)

    def _length(self, passage: Passage) -> int:
        """Tokens of a paragraph with a head of three digits and its separator."""
        if passage.id not in self._lengths:
            (self._lengths[passage.id],) = self.count_tokens([_document(100, passage) + SEPARATOR])
        return self._lengths[passage.id]

    def _tells(self, question: Question, passage: Passage) -> bool:
        """Whether a distractor would answer the question."""
        return any(
            len(answer) >= SHORTEST_TELLING
            and answer.lower() not in TELL_NOTHING
            and count_occurrences(f"{passage.title}\n{passage.text}", answer) > 0
            for answer in question.answers
        )


def _document(number: int, passage: Passage) -> str:
    return heading(number) + _body(passage)


def _body(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text
