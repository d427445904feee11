"""Aggregation: the most frequent words of a list (RULER section 3.3).

*Frequent words* are made-up words whose numbers fall off as a zeta distribution; the most frequent "word" is a row of
dots, the next three are asked for. *Common words* are words of the corpus in a numbered list, ten of which come more
often than all others.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from memtrain.corpus.compose import SEPARATOR
from memtrain.corpus.counting import CountTokens
from memtrain.errors import UserError
from memtrain.evaluation.ruler.sample import TooShort

DOTS = "..."
BLOCK = 50
"""Words of one paragraph."""
FULL = 0.97
"""Share of the length that is full enough."""
LONG = 4096
"""From this length on, words of the numbered list are repeated five times as often."""
_WORD = re.compile(r"(?<![\w'’-])[a-z]{4,12}(?![\w'’-])")


@dataclass(frozen=True)
class FrequentTask:
    """Made-up words."""

    alpha: float = 2.0
    """Exponent of the zeta distribution, above 1: the k-th word comes in proportion to ``k ** -alpha``."""
    letters: int = 6
    """Letters of a word."""
    asked: int = 3
    """Words asked for."""

    def question(self) -> str:
        """What is asked."""
        return (
            f"Which {self.asked} words come most often in the coded text? Do not count the dots. Separate the words by "
            "commas."
        )

    def counts(self, total: int, vocabulary: int) -> list[int]:
        """How often each of the words comes, most frequent first, in a text drawn for ``total`` words."""
        share = total / zeta(self.alpha)
        return [int(share * rank**-self.alpha) for rank in range(1, vocabulary + 1)]

    @property
    def least(self) -> int:
        """Words from which on the last one asked for surely comes more often than the next."""
        gap = (self.asked + 1) ** -self.alpha - (self.asked + 2) ** -self.alpha
        return math.ceil(zeta(self.alpha) / gap)


@dataclass(frozen=True)
class CommonTask:
    """Words of the corpus."""

    asked: int = 10
    """Common words, all of them asked for."""

    def question(self) -> str:
        """What is asked."""
        return f"Which {self.asked} words come most often in the numbered list? Separate them by commas."

    def repeats(self, tokens: int) -> tuple[int, int]:
        """How often a common word comes, and any other: as in RULER for texts of this length."""
        return (30, 3) if tokens >= LONG else (6, 1)


def zeta(alpha: float, terms: int = 1000) -> float:
    """Riemann's zeta function for ``alpha`` above 1: a sum and the first terms of Euler and Maclaurin for its rest."""
    rest = terms ** (1 - alpha) / (alpha - 1) + terms**-alpha / 2 + alpha * terms ** (-alpha - 1) / 12
    return sum(rank**-alpha for rank in range(1, terms)) + rest


def frequent(
    task: FrequentTask, tokens: int, rng: random.Random, count_tokens: CountTokens
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Paragraphs of at most ``tokens`` tokens, the words asked for, and the length. Raises :class:`TooShort`."""
    order = rng.randrange(2**32)
    words: dict[str, None] = {DOTS: None}
    while len(words) < max(10, tokens // 50):
        words["".join(rng.choices(string.ascii_lowercase, k=task.letters))] = None
    vocabulary = list(words)

    def write(total: int) -> Sequence[str]:
        drawn = [
            word for word, n in zip(vocabulary, task.counts(total, len(vocabulary)), strict=True) for _ in range(n)
        ]
        random.Random(order).shuffle(drawn)
        return drawn

    paragraphs, length = _fill(write, task.least, tokens * task.letters, tokens, count_tokens)
    return paragraphs, tuple(vocabulary[1 : task.asked + 1]), length


def vocabulary_of(texts: Iterable[str]) -> list[str]:
    """Lower-case words of 4 to 12 letters, sorted."""
    return sorted({word for text in texts for word in _WORD.findall(text)})


def common(
    task: CommonTask, tokens: int, vocabulary: Sequence[str], rng: random.Random, count_tokens: CountTokens
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Paragraphs of a numbered list, the common words, and the length.

    Where the whole vocabulary does not fill the length, all words are repeated more often, in the same proportion.
    Raises :class:`TooShort`, and :class:`UserError` where the vocabulary is too small for any list.
    """
    order = rng.randrange(2**32)
    words = rng.sample(vocabulary, len(vocabulary))
    if len(words) < 2 * task.asked:
        raise UserError(
            f"a list of common words takes at least {2 * task.asked} different words, but the corpus has {len(words)} "
            "on its held-out side; give more text, or leave out the task cwe"
        )
    often, seldom = task.repeats(tokens)
    times = 1

    def write(total: int) -> Sequence[str]:
        drawn = [
            word
            for place, word in enumerate(words[:total])
            for _ in range(times * (often if place < task.asked else seldom))
        ]
        random.Random(order).shuffle(drawn)
        return [f"{number}. {word}" for number, word in enumerate(drawn, 1)]

    if tokens > len(words) * seldom:  # an item takes two tokens at least
        (all_of_them,) = count_tokens([SEPARATOR.join(_blocks(write(len(words))))])
        times = -(-tokens // all_of_them)
    paragraphs, length = _fill(write, 2 * task.asked, len(words), tokens, count_tokens)
    return paragraphs, tuple(words[: task.asked]), length


def _fill(
    write: Callable[[int], Sequence[str]], least: int, most: int, tokens: int, count_tokens: CountTokens
) -> tuple[tuple[str, ...], int]:
    """The longest list that fits, nearly: it grows with the number that ``write`` is called with."""

    def written(number: int) -> tuple[tuple[str, ...], int]:
        paragraphs = _blocks(write(number))
        return paragraphs, count_tokens([SEPARATOR.join(paragraphs)])[0]

    low, (best, length) = least, written(least)
    if length > tokens:
        raise TooShort(length)
    high = most + 1  # a number that is too much
    while length < tokens * FULL and high > low + 1:
        guess = max(low + 1, low * tokens // max(1, length))
        if guess >= high:
            guess = (low + high) // 2 if high <= most else most
        found, n_tokens = written(guess)
        if n_tokens <= tokens:
            low, best, length = guess, found, n_tokens
        else:
            high = guess
    return best, length


def _blocks(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(words[at : at + BLOCK]) for at in range(0, len(words), BLOCK))
