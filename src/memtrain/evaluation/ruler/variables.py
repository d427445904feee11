"""Variable tracking: chains of assignments, of which one is asked for (RULER section 3.2)."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from memtrain.evaluation.ruler.haystack import DEPTHS
from memtrain.evaluation.ruler.sample import Needle

LETTERS = 5
"""Letters of a variable's name."""


@dataclass(frozen=True)
class VariableTask:
    """How many chains of which length."""

    chains: int = 1
    """Chains in the text; the first one is asked for."""
    hops: int = 4
    """Assignments from one variable to the next: a chain has one variable more."""

    def __post_init__(self) -> None:
        if self.chains < 1 or not 0 <= self.hops < len(DEPTHS):
            raise ValueError(f"{self.chains} chains of {self.hops} hops: at least 1, and fewer than {len(DEPTHS)} hops")


def draw(task: VariableTask, rng: random.Random) -> tuple[list[Needle], str, tuple[str, ...]]:
    """Assignments with their depths, each chain in its own order, the question, and the variables asked for."""
    names: dict[str, None] = {}
    while len(names) < task.chains * (task.hops + 1):
        names["".join(rng.choices(string.ascii_uppercase, k=LETTERS))] = None
    values = [str(value) for value in rng.sample(range(10_000, 100_000), task.chains)]
    variables, needles = list(names), list[Needle]()
    for chain, value in enumerate(values):
        mine = variables[chain * (task.hops + 1) :][: task.hops + 1]
        depths = sorted(rng.sample(DEPTHS, len(mine)))
        right = [value, *(f"VAR {name}" for name in mine)]
        needles += [
            Needle(f"VAR {name} = {given}.", name, value, depth)
            for name, given, depth in zip(mine, right, depths, strict=False)
        ]
    answers = tuple(variables[: task.hops + 1])
    question = (
        f"Which variables have the value {values[0]}, given directly or by way of other variables? Name all "
        f"{len(answers)} of them, separated by commas."
    )
    return needles, question, answers
