"""Trained tokens a second of the joint update, and its peak memory, against plain training row by row.

Tokens are those of the separate rows for both: what a user wants trained. Loss and gradient of the two are compared
here too, on the rows of the measurement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from memtrain.bench import flops
from memtrain.bench.child import run_child
from memtrain.bench.episodes import Recorded, Replayer, configs, describe_rows, experience_of, record, step_rows
from memtrain.bench.harness import Contestant, contest
from memtrain.bench.limit import ideal_seconds, measure_limit
from memtrain.bench.models import Place, load_engine, load_tokenizer
from memtrain.bench.peers.generate import load_peer
from memtrain.bench.peers.per_row import PerRowTrainer
from memtrain.bench.progress import Progress
from memtrain.bench.settings import BenchSettings
from memtrain.bench.workload import memory_texts, write_turns
from memtrain.engines.base import OptimiserConfig
from memtrain.engines.torch.optimiser import MasterAdamW
from memtrain.types import Row

OURS, PEER = "memtrain", "per-row transformers"


def bench_update(settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    """Memory in fresh processes, then speed and agreement in this one, which keeps what it once had."""
    memory: dict[str, Any] = {}
    rows = write_rows(load_tokenizer(Place.of(settings)), settings)
    for name in (OURS, PEER):
        progress(f"peak memory: {name}")
        plain = [[row.prompt_ids, row.completion_ids, row.advantage] for row in rows]
        try:
            memory[name] = run_child("update-memory", settings, who=name, rows=plain)
        except RuntimeError as error:  # most likely killed for memory; the rest can still be measured
            memory[name] = {"failed": str(error), "rows": len(rows)}
    return {"memory": memory, **_speed(settings, progress)}


def write_rows(tokenizer: Any, settings: BenchSettings) -> list[Row]:
    """One group's write rows: prompts as in the rollout benchmark, completions of real text."""
    turns = write_turns(tokenizer, settings, 1)
    texts = memory_texts(tokenizer, settings, 2 * len(turns.prompts))[len(turns.prompts) :]
    rows = []
    for number, (prompt, text) in enumerate(zip(turns.prompts, texts, strict=True)):
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))[: settings.memory_tokens]
        rows.append(Row(prompt, ids, (-1.0,) * len(ids), 1.0 if number % 2 else -1.0))
    return rows


def _speed(settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    place = Place.of(settings)
    engine = load_engine(place, settings)
    progress("recording the rows of a step")
    rows = recorded_rows(engine, settings)
    loss, optimiser = configs(settings)
    peer = load_trainer(place, settings)
    found: dict[str, Any] = {"work": describe_rows(rows)}
    limit = measure_limit(engine.loaded.base, place.device, place.dtype)
    told: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}

    def our_update(part: Sequence[Row], config: OptimiserConfig) -> None:
        told[OURS].append(asyncio.run(engine.update(part, loss, config)))

    def their_update(part: Sequence[Row], config: OptimiserConfig) -> None:
        told[PEER].append(peer.update(part, loss, config))

    still = replace(optimiser, lr=0.0)  # a warm-up that moves no weight: gradients are then compared at the same point
    for update in (our_update, their_update):
        update(rows[:2], still)
    taps = GradientTap(engine._adamw()), GradientTap(peer.optimiser)  # the one place that sees a whole gradient
    tokens = found["work"]["tokens_separate"]
    ours = Contestant(
        OURS, lambda: our_update(rows, optimiser), tokens, settings={"micro_batch_tokens": engine.micro_batch_tokens}
    )
    theirs = Contestant(
        PEER,
        lambda: their_update(rows, optimiser),
        tokens,
        settings={"micro_batch_tokens": peer.micro_batch_tokens, "attention": "sdpa"},
    )
    found |= contest([ours, theirs], settings.rounds, place.device, progress, warm=False)
    found["agreement"] = {
        "loss_memtrain": told[OURS][1]["loss"],
        "loss_per_row": told[PEER][1]["loss"],
        "gradient_cosine": cosine(taps[0].gradient, taps[1].gradient),
    }
    found["work"]["tokens_packed"] = told[OURS][-1]["tokens_packed"]
    found["work"]["tokens_padded"] = told[PEER][-1]["tokens_padded"]
    found["limit"] = share_of_limit(engine, rows, loss.kl_coef > 0, limit, found)
    return found


class GradientTap:
    """Keeps the gradient of an optimiser's next step, without a copy: nobody's time is touched.

    Clipping scales it afterwards, which a cosine does not see.
    """

    def __init__(self, optimiser: MasterAdamW) -> None:
        self.gradient: dict[str, torch.Tensor] = {}
        self._masters, self._step = optimiser.masters, optimiser.step
        optimiser.step = self  # type: ignore[method-assign]

    def __call__(self, config: OptimiserConfig) -> float:
        if not self.gradient:
            self.gradient = {name: m.grad for name, m in self._masters.items() if m.grad is not None}
        return self._step(config)


def cosine(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Between two whole gradients; raises KeyError where one has a weight that the other lacks."""
    if left.keys() != right.keys():
        raise KeyError(f"gradients of different weights: {sorted(left.keys() ^ right.keys())}")
    parts = []
    for name, gradient in left.items():
        a, b = gradient.double().flatten(), right[name].double().flatten()
        parts.append(torch.stack([a @ b, a @ a, b @ b]).cpu())
    cross, mine, other = torch.stack(parts).sum(0).tolist()
    return float(cross / (mine * other) ** 0.5)


def recorded_rows(engine: Any, settings: BenchSettings) -> list[Row]:
    """Rows of one step from a fresh recording."""
    recorded: Recorded = record(engine, settings)
    return rows_of(engine, recorded, settings)


def rows_of(engine: Any, recorded: Recorded, settings: BenchSettings) -> list[Row]:
    """Rows of a recording, without sampling anew."""

    class Told:
        """Completions of the right length at no cost."""

        tokenizer = engine.tokenizer

        async def sample(self, prompt_ids: Any, params: Any, n: int = 1) -> Any:
            return recorded[tuple(prompt_ids)][:n]

    return step_rows(asyncio.run(experience_of(Replayer(Told(), recorded), settings)), settings)


def load_trainer(place: Place, settings: BenchSettings) -> PerRowTrainer:
    """The peer on a model of its own."""
    model = load_peer(place.folder, place.device, place.dtype)
    reference = load_peer(place.folder, place.device, place.dtype) if settings.kl_coef > 0 else None
    if reference is not None:
        reference.requires_grad_(False)
    return PerRowTrainer(model, reference, settings.peer_micro_batch_tokens)


def share_of_limit(
    engine: Any,
    rows: Sequence[Row],
    reference: bool,
    limit: dict[str, Any],
    found: dict[str, Any],
) -> dict[str, Any]:
    """Our time and the peer's against the matrix products alone at the measured rate of 2,048 rows."""
    size = flops.ModelSize.of(engine.loaded.base)
    pairs = [((*row.prompt_ids, *row.completion_ids), len(row.completion_ids)) for row in rows]
    shares: dict[str, Any] = {"measured": limit}
    for name, share in ((OURS, True), (PEER, False)):
        work = flops.update(size, pairs, reference, share)
        seconds = found["contestants"][name]["seconds"]["median"]
        ideal = ideal_seconds(work, limit, 2048)
        shares[name] = {"flops": work.total, "ideal_seconds": ideal, "share": ideal / seconds}
    return shares
