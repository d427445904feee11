"""``memtrain plan --measure``: a few real steps of each stage here, and how fast each kind of work went in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from memtrain.engines.base import LossConfig, OptimiserConfig, Weights
from memtrain.evaluation import proxy
from memtrain.memory.prompts import Prompts
from memtrain.planning.compute import Training
from memtrain.planning.cost import Assumptions, Place, seconds
from memtrain.planning.hardware import GPUS, Device, this_machine
from memtrain.planning.models import ModelShape
from memtrain.planning.paper_engine import Lengths, ends_with, write_cue
from memtrain.planning.work import Work, sampled, scored, trained
from memtrain.recipe import Recipe
from memtrain.report.console import Screen
from memtrain.rl.checkpoint import RunFolder
from memtrain.rl.trainer import Trainer
from memtrain.types import Completion, Row, SamplingParams

PRIMING_STEPS = 3
GRPO_STEPS = 3
SHARES = ("prefill", "decode", "score", "train", "other", "launch")
"""What measuring settles."""
EVALUATED = 8
"""Held-out documents of the measured evaluation."""


@dataclass
class Seen:
    """Work that was done, and the seconds that went by."""

    work: list[Work] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """By what the engine reported: ``sampling``, ``scoring``, ``update``, ``other``."""
    writes: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def add(self, what: str, spent: float) -> None:
        """Charge time to a kind of work."""
        self.seconds[what] = self.seconds.get(what, 0.0) + spent


@dataclass
class _Asked:
    prompt: tuple[int, ...]
    most: int
    new: int = 0


class Recorder:
    """An engine that passes everything on, counts the work of every batch, and charges all time to some kind of it.

    The engine reports progress when part of a batch is done: the time since the last event went into that batch.
    """

    def __init__(self, engine: Any, recipe: Recipe) -> None:
        self.engine, self.budget = engine, recipe.train.micro_batch_tokens
        engine.on_progress = self._progress
        self._cue = write_cue(Prompts(engine.tokenizer, recipe.memory))
        self.seen = Seen()
        self._open: list[_Asked] = []
        self._batches: list[list[_Asked]] = []
        self._scores: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self._mark = time.perf_counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def start(self) -> None:
        """Forget what was seen; from now on everything counts."""
        self.seen, self._open, self._batches, self._scores = Seen(), [], [], []
        self._mark = time.perf_counter()

    def stop(self) -> Seen:
        """What was seen since :meth:`start`."""
        self._charge("other")
        for batch in self._batches:
            self.seen.work.append(sampled([(one.prompt, max(1, one.new), one.most) for one in batch]))
        seen = self.seen
        self.start()
        return seen

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """Note who asks, and how long the completions became."""
        asked = [_Asked(tuple(prompt_ids), params.max_tokens) for _ in range(n)]
        self._open += asked
        completions: list[Completion] = await self.engine.sample(prompt_ids, params, n)
        for one, completion in zip(asked, completions, strict=True):
            one.new = len(completion.token_ids)
            kind = self.seen.writes if ends_with(prompt_ids, self._cue) else self.seen.answers
            kind.append(one.new)
        return completions

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], weights: Weights = "policy"
    ) -> list[float]:
        """Note who asks."""
        self._scores.append((tuple(prompt_ids), tuple(completion_ids)))
        found: list[float] = await self.engine.score(prompt_ids, completion_ids, weights)
        return found

    async def update(self, rows: Sequence[Row], loss: LossConfig, optimiser: OptimiserConfig) -> dict[str, float]:
        """Note the rows, and time the whole update with the optimiser's step."""
        self._charge("other")
        self.seen.work.append(trained(rows, loss, self.budget))
        self._mark = time.perf_counter()  # counting is not the engine's time
        metrics: dict[str, float] = await self.engine.update(rows, loss, optimiser)
        self._charge("update")
        return metrics

    def _progress(self, what: str, done: int, total: int) -> None:
        if what == "update":
            return
        self._charge(what)
        if done < total:
            return
        if what == "sampling":
            self._batches.append(self._open)
            self._open = []
        elif what == "scoring":
            self.seen.work.append(scored(self._scores, self.budget))
            self._scores = []
        self._mark = time.perf_counter()

    def _charge(self, what: str) -> None:
        now = time.perf_counter()
        self.seen.add(what, now - self._mark)
        self._mark = now


@dataclass(frozen=True)
class Calibration:
    """What the measured steps say about this machine, by stage: ``priming``, ``grpo``, ``evaluation``."""

    assumed: dict[str, Assumptions]
    """Shares of the peak figures that each kind of work reached."""
    lengths: dict[str, Lengths]
    """How long memories and answers were; empty for priming."""
    seconds: dict[str, dict[str, float]]
    """What was measured, by kind of work."""
    device: Device
    """What it was measured on; its figures only have to be the same when the shares are used."""

    def of(self, kind: str, assumed: Assumptions) -> Assumptions:
        """``assumed`` with the measured shares of a kind of work in it."""
        found = self.assumed.get(kind) or self.assumed.get("grpo") or self.assumed["evaluation"]
        return replace(assumed, **{name: getattr(found, name) for name in SHARES})


def this_device(engine: Any) -> Device:
    """What an engine runs on: a named GPU where its name says so, else a nameless one, or this machine's processor."""
    import torch

    if torch.device(getattr(getattr(engine, "loaded", None), "device", "cpu")).type != "cuda":
        return replace(this_machine(), title="this machine, measured")
    name = torch.cuda.get_device_name()
    known = next((gpu for gpu in GPUS.values() if gpu.name.split("-")[-1] in name.lower()), GPUS["h100"])
    memory = float(torch.cuda.get_device_properties(0).total_memory)
    return replace(known, name="measured", title=f"{name}, measured", memory=memory)


def measure(
    recipe: Recipe, engine: Any, train: Sequence[Any], held_out: Sequence[Any], run: RunFolder, screen: Screen
) -> dict[str, Seen]:
    """Real steps of every stage of a recipe, the first of each thrown away: it compiles kernels and touches memory."""
    return asyncio.run(_measure(recipe, Recorder(engine, recipe), train, held_out, run, screen))


async def _measure(
    recipe: Recipe, recorder: Recorder, train: Sequence[Any], held_out: Sequence[Any], run: RunFolder, screen: Screen
) -> dict[str, Seen]:
    found: dict[str, Seen] = {}
    trainer = Trainer(recorder, recipe, train, run, screen)
    settings = recipe.priming
    if settings.steps:
        screen.stage("priming, measured", PRIMING_STEPS)
        for number in range(1, PRIMING_STEPS + 1):
            if number == 2:
                recorder.start()
            documents = trainer.batch("priming", number, settings.documents_per_step)
            await trainer.supervise([row for one in documents for row in trainer.pairs_of(one, number)], settings.lr)
            screen.advance()
        found["priming"] = recorder.stop()
    await recorder.reset_optimiser()
    if recipe.train.kl_coef > 0:
        await recorder.anchor()
    if recipe.train.steps:
        screen.stage("GRPO, measured", GRPO_STEPS)
        for number in range(1, GRPO_STEPS + 1):
            if number == 2:
                recorder.start()
            await trainer.grpo_step(number)
            screen.advance()
        found["grpo"] = recorder.stop()
    screen.stage("evaluation, measured", 0)
    recorder.start()
    await proxy.evaluate(recorder, held_out[:EVALUATED], recipe, "measured")
    found["evaluation"] = recorder.stop()
    return found


def calibrate(seen: dict[str, Seen], shape: ModelShape, training: Training, place: Place) -> Calibration:
    """How much of the peak figures each kind of work reached."""
    assumed = {stage: _efficiency(one, shape, training, place) for stage, one in seen.items()}
    lengths = {
        stage: Lengths(tuple(one.writes or [1]), tuple(one.answers or [1])) for stage, one in seen.items() if one.writes
    }
    return Calibration(assumed, lengths, {stage: dict(one.seconds) for stage, one in seen.items()}, place.device)


def _efficiency(seen: Seen, shape: ModelShape, training: Training, place: Place) -> Assumptions:
    """Prefill is taken to run as fast as scoring does, for the two are timed apart nowhere; the rest is decoding."""
    perfect = Assumptions(prefill=1.0, decode=1.0, score=1.0, train=1.0, other=0.0, launch=0.0)
    ideal = seconds(Work.total(seen.work), shape, training, place, perfect)
    found = Assumptions(launch=0.0)
    spent = seen.seconds
    update, scoring, sampling = (spent.get(kind, 0.0) for kind in ("update", "scoring", "sampling"))
    if update and ideal["train"]:
        found = replace(found, train=(ideal["train"] + ideal["reference"]) / update)
    if scoring and ideal["score"]:
        found = replace(found, score=ideal["score"] / scoring)
        found = replace(found, prefill=found.score)
    elif update:
        found = replace(found, prefill=found.train)
    if sampling and ideal["decode"]:
        left = sampling - ideal["prefill"] / found.prefill
        if left < sampling / 5:  # prefill must have been faster than that
            both = (ideal["prefill"] + ideal["decode"]) / sampling
            found = replace(found, prefill=both, decode=both)
        else:
            found = replace(found, decode=ideal["decode"] / left)
    work = update + scoring + sampling
    return replace(found, other=spent.get("other", 0.0) / work if work else 0.0)
