"""The stages of a training run, each skipped where its result is already there.

evaluation -> priming -> evaluation -> GRPO -> evaluation -> model, summary, plots. Every stage leaves a file when it is
finished; ``--resume`` starts at the first one that is missing. With several workers all go through the stages together,
and rank 0 alone writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from memtrain.corpus import documents as corpus_documents
from memtrain.engines.workers import ALONE, Workers, dealt_together, share, together
from memtrain.evaluation.proxy import EvalResult
from memtrain.evaluation.proxy import evaluate as evaluate_proxy
from memtrain.recipe import Recipe
from memtrain.report.console import Screen
from memtrain.report.plots import plot_all
from memtrain.report.summary import cell, summarise, write_summary
from memtrain.report.trackers import Tracker
from memtrain.rl.checkpoint import PartialFolder, RunFolder, write_atomically
from memtrain.rl.trainer import Trainer
from memtrain.types import TrainingDocument


class Run:
    """One training run under way."""

    def __init__(self, recipe: Recipe, run: RunFolder, engine: Any, screen: Screen, workers: Workers = ALONE) -> None:
        """Raises :class:`UserError` where the documents are not built or the tracker is not installed."""
        self.recipe, self.run, self.engine, self.screen, self.workers = recipe, run, engine, screen, workers
        self.documents = corpus_documents.open_documents(run.path / "documents", "train")
        self.held_out = corpus_documents.open_documents(run.path / "documents", "held_out")
        self.clock = _Seconds(run.path / "seconds.json", writes=self.writes)
        kind = recipe.log.tracker if self.writes else "none"
        self.tracker = Tracker(kind, recipe.log.project, recipe.name, recipe.model_dump(), run.path)
        self.trainer = Trainer(engine, recipe, self.documents, run, screen, self._track, self.measure, workers=workers)

    @property
    def writes(self) -> bool:
        """Whether this worker leaves files."""
        return self.workers.rank == 0

    async def stages(self) -> None:
        """From the first stage that is not finished to the summary."""
        recipe, run = self.recipe, self.run
        position = self.workers.gather(run.latest() if self.writes else None)[0]
        if self.writes:
            (run.path / "eval").mkdir(exist_ok=True)
            run.cut_metrics(position)
        results = {}
        if position is None:
            results["before"] = await self.measure("before")
        else:
            self.screen.note(f"resuming after step {position.step} of {position.stage}")
            await together(self.workers, self.engine.load(run.place(position)))
            results["before"] = await self._recorded("before")
        in_grpo = position is not None and position.stage == "grpo"
        if recipe.priming.steps:
            if not in_grpo:
                with self.clock("priming"):
                    await self.trainer.prime(position.step if position else 0)
                results["after_priming"] = await self.measure("after_priming")
            else:
                results["after_priming"] = await self._recorded("after_priming")
        if recipe.train.steps:
            with self.clock("grpo"):
                await self.trainer.train(position.step if in_grpo and position else 0)
            results["after"] = await self.measure("after")
        else:  # priming alone: its end is the run's end
            results["after"] = results.get("after_priming", results["before"])
        sampled = self.workers.gather(getattr(self.engine, "tokens_sampled", None))
        if self.writes:
            self.screen.stage("writing the model", 0)
            async with PartialFolder(run.path / "model") as part:
                await self.engine.export(part)
            extra = {"tokens_sampled": sum(sampled) if None not in sampled else None}
            if self.workers.size > 1:
                extra["workers"] = self.workers.size
            write_summary(run.path, summarise(results, recipe, self.clock.seconds, extra))
            plot_all(run.path)
            self.tracker.close()
            run.kept()
        self.workers.gather(None)  # nobody leaves before the model is written

    async def measure(self, label: str) -> EvalResult:
        """Evaluate under a label, once: a result that is there is read back. Workers share the documents."""
        file = self._eval_file(label)
        if self.workers.gather(file.exists())[0]:
            return await self._recorded(label)
        with self.clock(f"evaluation {label}"):
            await self.engine.reseed(f"{self.recipe.seed}/evaluation")
            chosen = self.held_out[: self.recipe.eval.documents]
            result = await measure(self.engine, chosen, self.recipe, label, self.screen, self.workers)
        if self.writes:
            result.save(file)
            self.run.kept()
        self.screen.note(f"{label}: " + _one_line(result))
        return result

    async def _recorded(self, label: str) -> EvalResult:
        """A result that rank 0 finds on its disk, for all."""

        async def load() -> EvalResult | None:
            return EvalResult.load(self._eval_file(label)) if self.writes else None

        found = self.workers.gather(await together(self.workers, load()))[0]
        assert isinstance(found, EvalResult)
        return found

    def _eval_file(self, label: str) -> Path:
        return self.run.path / "eval" / f"{label}.json"

    def _track(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        offset = self.recipe.priming.steps if stage == "grpo" else 0
        self.tracker.log(offset + step, {f"{stage}/{name}": value for name, value in metrics.items()})


class _Seconds:
    """Wall time of stages, summed over resumed parts."""

    def __init__(self, file: Path, writes: bool = True) -> None:
        self.file, self.writes = file, writes
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began
            if self.writes:
                write_atomically(self.file, json.dumps(self.seconds))


async def measure(
    engine: Any,
    held_out: Sequence[TrainingDocument],
    recipe: Recipe,
    label: str,
    screen: Screen,
    workers: Workers = ALONE,
) -> EvalResult:
    """Evaluate on these documents, each worker on its share; everybody gets the whole result."""
    own = share(workers, held_out)
    screen.stage(f"evaluation {label}", len(own) * recipe.eval.samples)
    shown = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal shown
        screen.advance(done - shown)
        shown = done

    async def evaluated() -> EvalResult | None:
        return await evaluate_proxy(engine, own, recipe, label, progress) if own or workers.size == 1 else None

    result = await together(workers, evaluated())
    if workers.size == 1:
        assert result is not None
        return result
    parts = workers.gather(result)
    by_document = [
        [list(records) for _, records in groupby(part.records, key=lambda record: record["document"])] if part else []
        for part in parts
    ]
    whole = [record for records in dealt_together(by_document) for record in records]
    return replace(parts[0], records=whole, notes=parts[0].notes | {"documents": len(held_out)})


def _one_line(result: EvalResult) -> str:
    summary = result.summary()
    names = ("recall_likelihood_gain", "recall_logprob", "recall_f1", "entities_kept")
    parts = [f"{name.replace('_', ' ')} {cell(summary[name])}" for name in names if name in summary]
    return ", ".join(parts) + f" (n = {result.notes['documents']} documents)"
