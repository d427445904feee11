"""Needles in a haystack: one or many keys, values and questions (RULER section 3.1)."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from memtrain.corpus.counting import CountTokens
from memtrain.evaluation.ruler.haystack import DEPTHS, Unit
from memtrain.evaluation.ruler.sample import Needle
from memtrain.evaluation.ruler.words import DRAW, Kind, different

LINES = 8
"""Needles of one document where the noise is made of needles."""
BATCH = 32
"""Documents of such noise that are counted together."""


@dataclass(frozen=True)
class NeedleTask:
    """How many needles of which kind."""

    keys: int = 1
    """Different keys hidden; never fewer than ``queries``."""
    values: int = 1
    """Values of every key, each in a needle of its own."""
    queries: int = 1
    """Keys asked for."""
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    noise: Literal["passages", "needles"] = "passages"
    """What the needles are hidden in; ``needles``: others of their kind with other keys."""

    def __post_init__(self) -> None:
        if not 1 <= self.queries <= self.keys or self.values < 1:
            raise ValueError(f"{self.queries} queries need as many keys, not {self.keys}, and a value")
        if self.keys * self.values > len(DEPTHS):
            raise ValueError(f"{self.keys * self.values} needles, but there are {len(DEPTHS)} depths")


def sentence(kind: Kind, key: str, value: str) -> str:
    """The hidden sentence, worded as in RULER."""
    return f"One of the special magic {kind} for {key} is: {value}."


def question(kind: Kind, keys: Sequence[str], values: int) -> str:
    """Asks for all values of the keys."""
    named = f"{', '.join(keys[:-1])} and {keys[-1]}" if len(keys) > 1 else keys[0]
    if len(keys) * values == 1:
        return f"What is the special magic {kind[:-1]} for {named} in the text?"
    return f"What are all the special magic {kind} for {named} in the text? Separate them by commas."


def draw(task: NeedleTask, rng: random.Random) -> tuple[list[Needle], str, tuple[str, ...]]:
    """Needles with their depths, the question, and the values asked for."""
    keys = different(task.key_kind, task.keys, rng)
    values = different(task.value_kind, task.keys * task.values, rng)
    pairs = [(keys[place // task.values], value) for place, value in enumerate(values)]
    depths = rng.sample(DEPTHS, len(pairs))
    needles = [
        Needle(sentence(task.value_kind, key, value), key, value, depth)
        for (key, value), depth in zip(pairs, depths, strict=True)
    ]
    asked = rng.sample(keys, task.queries)
    answers = tuple(value for wanted in asked for key, value in pairs if key == wanted)
    return needles, question(task.value_kind, asked, task.values), answers


def noise(task: NeedleTask, rng: random.Random, telling: Collection[str], count_tokens: CountTokens) -> Iterator[Unit]:
    """Documents of needles with other keys and values, without end."""
    while True:
        blocks = [tuple(f"{_other(task, rng, telling)} " for _ in range(LINES)) for _ in range(BATCH)]
        lengths = count_tokens(["".join(block) for block in blocks])
        yield from (Unit(block, length) for block, length in zip(blocks, lengths, strict=True))


def _other(task: NeedleTask, rng: random.Random, telling: Collection[str]) -> str:
    while True:
        key, value = DRAW[task.key_kind](rng), DRAW[task.value_kind](rng)
        if key not in telling and value not in telling:
            return sentence(task.value_kind, key, value)
