"""The trainer: priming, then GRPO on both tasks jointly. The road from documents to the loss on one screen.

The loop knows an engine and rows; what a memory is, it leaves to ``tasks`` and ``experience``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from memtrain.engines.base import Engine, LossConfig, OptimiserConfig
from memtrain.engines.workers import ALONE, Workers, combined, dealt_together, share, together
from memtrain.errors import UserError
from memtrain.memory.prompts import Prompts
from memtrain.memory.reader import split_chunks
from memtrain.recipe import Recipe
from memtrain.rl.checkpoint import Position, RunFolder
from memtrain.rl.experience import Experience, collect, sample_records
from memtrain.tasks.priming import pairs
from memtrain.types import Row, TrainingDocument

Collect = Callable[[Engine, Prompts, Sequence[Any], Recipe, int], Awaitable[Experience]]
"""Episodes of a step, of whatever task: engine, prompts, documents, recipe, step -> experience."""

COUNTS = frozenset({"rows", "policy_tokens", "tokens_packed", "tokens_separate", "update_seconds"})
"""Metrics of an update that add up over the mini-batches of a step; of the others the mean is logged."""


class Watcher(Protocol):
    """Who is shown how it goes (``report.console.Screen``)."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def metrics(self, step: int, values: dict[str, Any]) -> None: ...
    def sample(self, text: str, reward: float | None = None) -> None: ...


class Trainer:
    """Trains one engine on one set of documents, from wherever the run folder says it stopped."""

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        documents: Sequence[Any],
        run: RunFolder,
        watcher: Watcher,
        on_metrics: Callable[[str, int, dict[str, float]], None] = lambda stage, step, metrics: None,
        on_evaluate: Callable[[str], Awaitable[Any]] | None = None,
        collector: Collect | None = None,
        workers: Workers = ALONE,
    ):
        """``documents``: what ``collector`` makes episodes of: training or question documents for the reader.
        ``on_metrics(stage, step, metrics)`` feeds trackers; ``on_evaluate(label)`` is awaited every
        ``eval.every`` GRPO steps. Each of the ``workers`` takes its share of a step's documents; only rank 0 writes."""
        self.engine, self.recipe, self.documents, self.run, self.watcher = engine, recipe, documents, run, watcher
        self.on_metrics, self.on_evaluate, self.collector = on_metrics, on_evaluate, collector or collect
        self.workers = workers
        self.prompts = Prompts(engine.tokenizer, recipe.memory)

    async def prime(self, start: int = 0) -> None:
        """Supervised steps ``start + 1 .. priming.steps`` on pairs made from the text itself."""
        settings = self.recipe.priming

        async def step(number: int) -> dict[str, float]:
            documents = share(self.workers, self.batch("priming", number, settings.documents_per_step))
            rows = [row for document in documents for row in self.pairs_of(document, number)]
            warm = min(1.0, number / max(1, settings.steps // 10))
            return await self.supervise(rows, settings.lr * warm)

        await self._loop("priming", start, settings.steps, step)

    async def train(self, start: int = 0) -> None:
        """GRPO steps ``start + 1 .. train.steps``."""
        if start == 0:
            # Priming leaves second moments of far larger gradients, which would shrink the first hundred steps.
            await self.engine.reset_optimiser()
            if self.recipe.train.kl_coef > 0:
                await self.engine.anchor()

        await self._loop("grpo", start, self.recipe.train.steps, self.grpo_step)

    async def grpo_step(self, number: int) -> dict[str, float]:
        """Step ``number`` (from 1): roll out, reward, compare, update once."""
        experience = await together(self.workers, self.collect(number))
        metrics = combined(self.workers, experience.metrics, experience.weights)
        self._show(experience, number)
        return metrics | await self.learn(experience, number)

    async def supervise(self, rows: Sequence[Row], lr: float) -> dict[str, float]:
        """One optimiser step of plain cross-entropy."""
        return await self.engine.update(rows, LossConfig(kl_coef=0.0, cross_entropy_coef=1.0), self._optimiser(lr))

    def pairs_of(self, document: TrainingDocument, step: int) -> list[Row]:
        """Priming rows of one document at one step."""
        chunks = split_chunks(document.text, self.engine.tokenizer, self.recipe.memory)
        rng = random.Random(f"{self.recipe.seed}/priming/{step}/{document.id}")
        return pairs(document, chunks, self.prompts, self.recipe.memory, self.recipe.priming, rng)

    async def collect(self, number: int) -> Experience:
        """The experience of GRPO step ``number`` (from 1): this worker's share."""
        documents = share(self.workers, self.batch("grpo", number, self.recipe.train.documents_per_step))
        return await self.collector(self.engine, self.prompts, documents, self.recipe, number)

    async def learn(self, experience: Experience, number: int) -> dict[str, float]:
        """One joint update on the experience of step ``number``, or one for each of its mini-batches."""
        train = self.recipe.train
        loss = LossConfig(
            clip_low=train.clip_low,
            clip_high=train.clip_high,
            kl_coef=train.kl_coef,
            normaliser=train.normaliser,
            cross_entropy_coef=train.recall_cross_entropy,
            old_logprobs=train.old_logprobs,
            temperature=train.temperature,
            importance_sampling_cap=self.recipe.importance_sampling_cap,
        )
        warm = min(1.0, number / train.warmup_steps) if train.warmup_steps else 1.0
        documents = self._with_rows(experience.rows, number) if train.mini_batches > 1 else None
        parts = mini_batches(experience.rows, train.mini_batches, documents)
        found = [await self.engine.update(part, loss, self._optimiser(train.lr * warm)) for part in parts]
        if len(found) == 1:
            return found[0]
        return {
            name: (sum if name in COUNTS else fmean)([metrics[name] for metrics in found if name in metrics])
            for name in found[0]
        }

    def _with_rows(self, rows: Sequence[Row], number: int) -> list[str] | None:
        """Documents of a step that any worker has rows of, in the order of the batch."""
        if self.workers.size == 1:
            return None
        having = set().union(*self.workers.gather({document_of(row) for row in rows}))
        ids = (d.id.split("/")[0] for d in self.batch("grpo", number, self.recipe.train.documents_per_step))
        return [name for name in dict.fromkeys(ids) if name in having]

    async def _loop(
        self, stage: str, start: int, total: int, step: Callable[[int], Awaitable[dict[str, float]]]
    ) -> None:
        """Run steps, log them, checkpoint on time, at the end, and when interrupted."""
        log = self.recipe.log
        done = start
        self.watcher.stage(stage, total - start)
        try:
            for number in range(start + 1, total + 1):
                began = time.perf_counter()
                await self.engine.reseed(f"{self.recipe.seed}/{stage}/{number}")
                metrics = await step(number)
                done = number
                metrics["seconds"] = time.perf_counter() - began
                metrics["tokens_per_second"] = metrics.get("tokens_separate", 0.0) / metrics["seconds"]
                if self.workers.rank == 0:
                    self.run.log({"stage": stage, "step": number, **metrics})
                    self.on_metrics(stage, number, metrics)
                self.watcher.advance()
                self.watcher.metrics(number, metrics)
                if number == total or (log.checkpoint_every and number % log.checkpoint_every == 0):
                    await self._save(Position(stage, number))
                every = self.recipe.eval.every
                if stage == "grpo" and self.on_evaluate and every and number % every == 0 and number < total:
                    await self.on_evaluate(f"step-{number}")
                    self.watcher.stage(stage, total - number)
        except (KeyboardInterrupt, asyncio.CancelledError, UserError):
            # A step is all or nothing, so what stands now is the state after the last finished one.
            if done > start:
                await self._save(Position(stage, done))
            raise

    async def _save(self, position: Position) -> None:
        """A checkpoint: all workers hold the same weights, so one writes."""
        if self.workers.rank == 0:
            await self.run.save(self.engine, position, self.recipe.log.keep_checkpoints)

    def _optimiser(self, lr: float) -> OptimiserConfig:
        train = self.recipe.train
        return OptimiserConfig(lr=lr, weight_decay=train.weight_decay, grad_clip=train.grad_clip)

    def batch(self, stage: str, number: int, size: int) -> list[Any]:
        """Documents of step ``number``: consecutive places of a fresh shuffle every epoch, by the seed alone."""
        chosen = []
        for place in range((number - 1) * size, number * size):
            epoch, index = divmod(place, len(self.documents))
            chosen.append(self.documents[self._order(stage, epoch)[index]])
        return chosen

    def _order(self, stage: str, epoch: int) -> list[int]:
        order = list(range(len(self.documents)))
        random.Random(f"{self.recipe.seed}/order/{stage}/{epoch}").shuffle(order)
        return order

    def _show(self, experience: Experience, number: int) -> None:
        """A memory on the screen, and the step's samples on disk."""
        if experience.episodes:
            first = experience.episodes[0]
            best = max(range(len(first.rewards)), key=lambda place: first.rewards[place])
            self.watcher.sample(first.trajectories[best].memories[-1], first.rewards[best])
        limit = self.recipe.log.samples
        if limit:
            groups = [
                sample_records([found], self.prompts, number, 1, self.recipe.train.std_normalise)
                for found in experience.episodes[: -(-limit // self.workers.size)]
            ]
            kept = dealt_together(self.workers.gather(groups))[:limit]
            if self.workers.rank == 0:
                records = [record for group in kept for record in group]
                write_samples(self.run.path / "samples" / f"grpo-{number:06d}.parquet", records)


def mini_batches(rows: Sequence[Row], n: int, documents: Sequence[str] | None = None) -> list[list[Row]]:
    """Deal the groups of a step into up to ``n`` mini-batches of about as many groups, in order; rows of a document
    stay together. At least one comes back, empty where there are no rows.

    ``documents``: ids of all documents with rows, in order, where other workers hold some of them; a mini-batch is then
    this worker's part of one, and may be empty."""
    if n == 1:
        return [list(rows)]
    known = list(dict.fromkeys(map(document_of, rows))) if documents is None else documents
    part = {document: place * n // len(known) for place, document in enumerate(known)}
    dealt: list[list[Row]] = [[] for _ in range(n)]
    for row in rows:
        dealt[part[document_of(row)]].append(row)
    return [dealt[place] for place in sorted(set(part.values()))] or [[]]


def document_of(row: Row) -> str:
    """Id of the document that a row came from."""
    return row.group_id.split("/")[0]


def write_samples(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records as Parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    pq.write_table(pa.Table.from_pylist(records), part)
    part.replace(path)
