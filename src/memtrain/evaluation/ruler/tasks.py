"""The tasks by name, and what makes their samples."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from memtrain.corpus.compose import SEPARATOR
from memtrain.corpus.counting import CountTokens
from memtrain.errors import UserError
from memtrain.evaluation.ruler import frequency, haystack, needles, variables
from memtrain.evaluation.ruler.frequency import CommonTask, FrequentTask
from memtrain.evaluation.ruler.haystack import PassagePool, Unit
from memtrain.evaluation.ruler.needles import NeedleTask
from memtrain.evaluation.ruler.sample import Needle, Sample, TooShort
from memtrain.evaluation.ruler.variables import VariableTask
from memtrain.types import Passage

Task = NeedleTask | VariableTask | FrequentTask | CommonTask

TASKS: dict[str, Task] = {
    "niah-single": NeedleTask(),
    "niah-single-uuid": NeedleTask(value_kind="uuids"),
    "niah-multi-key": NeedleTask(keys=4),
    "niah-multi-key-lines": NeedleTask(noise="needles"),
    "niah-multi-key-uuid": NeedleTask(key_kind="uuids", value_kind="uuids", noise="needles"),
    "niah-multi-value": NeedleTask(values=4),
    "niah-multi-query": NeedleTask(keys=4, queries=4),
    "vt": VariableTask(),
    "cwe": CommonTask(),
    "fwe": FrequentTask(),
}
"""RULER's tasks with its published settings: niah_single_2 and _3, niah_multikey_1 to _3, niah_multivalue,
niah_multiquery, vt, cwe, fwe. Left out are niah_single_1, whose noise is one sentence over and over, and its two QA
tasks."""


@dataclass
class RulerMaker:
    """Makes samples from one pool of passages, which it counts once."""

    passages: Sequence[Passage]
    """Held-out passages: the noise, and the words of ``cwe``. Never empty."""
    count_tokens: CountTokens
    _pool: PassagePool = field(init=False)
    _vocabulary: list[str] | None = None

    def __post_init__(self) -> None:
        self._pool = PassagePool(self.passages, self.count_tokens)

    def make(self, name: str, tokens: int, number: int, seed: int, task: Task | None = None) -> Sample:
        """Sample ``number`` of a task at a length; the same for the same arguments and pool.

        Question, answers and needles depend on name, number and seed only: at every length the same is asked, and a
        longer text begins with the documents of a shorter one. ``task``: settings for a name outside :data:`TASKS`.

        Raises :class:`UserError` naming the smallest length where ``tokens`` is below it.
        """
        try:
            return self._make(name, task or TASKS[name], tokens, number, seed)
        except TooShort as error:
            raise UserError(
                f"{name}: a text of {tokens} tokens is too short for what it must hold; set --lengths to at least "
                f"{error.smallest}"
            ) from None

    def smallest(self, name: str, number: int, seed: int, task: Task | None = None) -> int:
        """The smallest length in tokens that :meth:`make` takes for this sample."""
        task = task or TASKS[name]
        rng = random.Random(f"{seed}/{name}/{number}")
        if isinstance(task, NeedleTask | VariableTask):
            hidden, _, _ = _draw(task, rng)
            return haystack.smallest(self._units(task, rng, hidden), hidden, self.count_tokens)
        try:
            self._make(name, task, 0, number, seed)
        except TooShort as error:
            return error.smallest
        raise AssertionError(f"{name} made a text of no tokens")

    def _make(self, name: str, task: Task, tokens: int, number: int, seed: int) -> Sample:
        rng = random.Random(f"{seed}/{name}/{number}")
        hidden: tuple[Needle, ...] = ()
        passages: tuple[Passage | None, ...]
        if isinstance(task, NeedleTask | VariableTask):
            drawn, question, answers = _draw(task, rng)
            hay, length = haystack.fill(self._units(task, rng, drawn), drawn, tokens, self.count_tokens)
            text, paragraphs, passages, hidden = hay.text, hay.paragraphs, hay.passages, hay.needles
        else:
            if isinstance(task, FrequentTask):
                paragraphs, answers, length = frequency.frequent(task, tokens, rng, self.count_tokens)
            else:
                paragraphs, answers, length = frequency.common(task, tokens, self._words(), rng, self.count_tokens)
            question, text, passages = task.question(), SEPARATOR.join(paragraphs), (None,) * len(paragraphs)
        return Sample(
            id=f"{name}/{number}",
            task=name,
            length=tokens,
            text=text,
            paragraphs=paragraphs,
            passages=passages,
            question=question,
            answers=answers,
            needles=hidden,
            n_tokens=length,
            seed=seed,
        )

    def _units(self, task: NeedleTask | VariableTask, rng: random.Random, hidden: Sequence[Needle]) -> Iterator[Unit]:
        telling = {text for needle in hidden for text in (needle.key, needle.value)}
        if isinstance(task, NeedleTask) and task.noise == "needles":
            return needles.noise(task, rng, telling, self.count_tokens)
        return self._pool.units(rng, telling)

    def _words(self) -> list[str]:
        if self._vocabulary is None:
            self._vocabulary = frequency.vocabulary_of(passage.text for passage in self.passages)
        return self._vocabulary


def _draw(task: NeedleTask | VariableTask, rng: random.Random) -> tuple[list[Needle], str, tuple[str, ...]]:
    return needles.draw(task, rng) if isinstance(task, NeedleTask) else variables.draw(task, rng)
