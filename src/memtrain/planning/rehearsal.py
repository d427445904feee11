"""The work of every stage: its real code is run on the paper engine, over as many steps as can be played in seconds.

What is not played is scaled: a step that is too large is played with fewer documents, a stage that is too long with
fewer steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memtrain.evaluation import long_qa, proxy
from memtrain.evaluation.long_qa import Asked
from memtrain.planning.paper_engine import Lengths, PaperEngine
from memtrain.planning.work import Work
from memtrain.recipe import Recipe, RewardKind
from memtrain.rl.advantages import cross_entropy_rows, rows_of
from memtrain.rl.checkpoint import RunFolder
from memtrain.rl.experience import Experience, collect
from memtrain.rl.trainer import Trainer
from memtrain.types import ReadingDocument

ROOM = 1_500_000
"""Most tokens, summed over sequences, that one stage is played with: about five seconds."""

NOTED = 24
"""Documents whose notes are looked at."""


@dataclass(frozen=True)
class Player:
    """Plays the stages of one recipe."""

    recipe: Recipe
    tokenizer: Any
    window: int
    lengths: Lengths
    stock: Sequence[int]
    kept: float = 1.0
    """Share of groups with exact or F1 rewards whose rewards differ; the others do not train."""

    def priming(self, documents: Sequence[ReadingDocument]) -> Work:
        """All priming steps."""
        settings = self.recipe.priming

        async def step(trainer: Trainer, number: int, chosen: Sequence[Any]) -> None:
            await trainer.supervise([row for one in chosen for row in trainer.pairs_of(one, number)], settings.lr)

        return self._steps("priming", settings.steps, settings.documents_per_step, 1, documents, step)

    def notes_lengths(self, documents: Sequence[Any]) -> tuple[int, ...]:
        """Lengths of the notes that priming trains: as long a primed model's memories are taken to be."""
        trainer = Trainer(self._engine(), self.recipe, documents, RunFolder(Path()), _Nobody())
        rows = [row for place in range(min(NOTED, len(documents))) for row in trainer.pairs_of(documents[place], 1)]
        return tuple(len(row.completion_ids) for row in rows if row.metadata.get("pair") == "write")

    def grpo(self, documents: Sequence[ReadingDocument]) -> Work:
        """All GRPO steps."""
        train = self.recipe.train

        async def step(trainer: Trainer, number: int, chosen: Sequence[Any]) -> None:
            engine: Any = trainer.engine
            found = await collect(engine, trainer.prompts, chosen, self.recipe, number)
            drawn = engine.take()
            await trainer.learn(self._rows(found, every=True), number)
            learned = engine.take()
            if self.kept < 1:  # between all groups and those that are never dropped
                await trainer.learn(self._rows(found, every=False), number)
                mixed = engine.take().times(1 - self.kept) + learned.times(self.kept)
                learned = replace(mixed, updates=learned.updates)
            engine.parts = [drawn, learned]

        return self._steps("grpo", train.steps, train.documents_per_step, train.mini_batches, documents, step)

    def evaluation(self, documents: Sequence[Any]) -> Work:
        """One evaluation of the proxy tasks."""
        asked = min(self.recipe.eval.documents, len(documents))

        async def play(engine: PaperEngine, chosen: Sequence[Any]) -> None:
            await proxy.evaluate(engine, chosen, self.recipe, "plan")

        return self._widened(list(documents[:asked]), play)

    def qa_evaluation(self, texts: Sequence[Asked], number: int) -> Work:
        """One evaluation of the task: ``texts`` of one question, a length each, for ``number`` questions."""
        engine = self._engine()

        def count(pieces: list[str]) -> list[int]:
            return [len(ids) for ids in self.tokenizer(pieces, add_special_tokens=False)["input_ids"]]

        asyncio.run(long_qa.evaluate(engine, texts, self.recipe, count))
        return engine.take().widened(number)

    def _engine(self) -> PaperEngine:
        return PaperEngine(self.tokenizer, self.window, self.recipe, self.lengths, self.stock)

    def _steps(
        self,
        stage: str,
        steps: int,
        size: int,
        updates: int,
        documents: Sequence[ReadingDocument],
        step: Callable[..., Any],
    ) -> Work:
        """``steps`` steps of ``size`` documents and ``updates`` updates each, as many of them played as there is room
        for."""
        if not steps:
            return Work()
        engine = self._engine()
        trainer = Trainer(engine, self.recipe, documents, RunFolder(Path()), _Nobody())

        def play(number: int, documents_now: int) -> Work:
            chosen = trainer.batch(stage, number, size)[:documents_now]
            asyncio.run(step(trainer, number, chosen))
            return engine.take()

        one = play(1, 1)
        fitting = max(1, int(ROOM / max(1.0, _size(one))))
        if fitting < size:
            whole = (one if fitting == 1 else play(1, fitting)).widened(size / fitting)
            # A step of fewer documents may not have had one for each of its mini-batches.
            return replace(whole, updates=float(updates)).times(steps)
        played = min(steps, max(1, fitting // size))
        return Work.total([play(number, size) for number in range(1, played + 1)]).times(steps / played)

    def _widened(self, documents: list[Any], play: Callable[..., Any]) -> Work:
        engine = self._engine()
        asyncio.run(play(engine, documents[:1]))
        one = engine.take()
        fitting = max(1, min(len(documents), int(ROOM / max(1.0, _size(one)))))
        if fitting > 1:
            asyncio.run(play(engine, documents[:fitting]))
            one = engine.take()
        return one.widened(len(documents) / fitting)

    def _rows(self, found: Experience, every: bool) -> Experience:
        """The experience with the rows of every group, or of those alone whose rewards always differ.

        Nobody has answered anything, so all rewards are equal and every group would be dropped: they are made to
        differ.
        """
        tasks, train = self.recipe.tasks, self.recipe.train
        rewards: dict[str, RewardKind] = {"e2e": tasks.reconstruction_reward, "recall": tasks.recall_reward}
        chosen = [
            replace(group, rewards=tuple(map(float, range(len(group.rewards)))))
            for episode in found.episodes
            for group in episode.groups
            if every or _always_differs(rewards[group.kind], group.kind, tasks)
        ]
        rows = list(rows_of(chosen, train.std_normalise).rows)
        if train.recall_cross_entropy > 0:
            rows += [row for e in found.episodes for row in cross_entropy_rows(e.known, group_id=e.document.id)]
        return replace(found, rows=rows)


def _always_differs(reward: RewardKind, kind: str, tasks: Any) -> bool:
    """Whether rewards of a group are never all equal: likelihoods, also where they are only added."""
    coupled = kind == "e2e" and tasks.mode == "full" and tasks.recall_reward == "likelihood"
    return reward == "likelihood" or coupled


def _size(work: Work) -> float:
    passes = (work.prefill, work.score, work.reference, work.train)
    return sum(part.separate for part in passes) + work.decoded


class _Nobody:
    """Watches nothing."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def metrics(self, step: int, values: dict[str, Any]) -> None: ...
    def sample(self, text: str, reward: float | None = None) -> None: ...
