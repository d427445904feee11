"""One whole GRPO step, rollouts + recall + rewards + update, against TRL on the same rows.

Both run the same episode code on the same document, sample as many new tokens for the same prompts, earn the same
rewards and train the same rows once (``episodes.py`` says how). Their sampler, their loss, their loop and ours differ.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memtrain.bench.episodes import Replayer, configs, describe_rows, experience_of, record, step_rows
from memtrain.bench.harness import Contestant, contest
from memtrain.bench.models import Place, load_engine, load_tokenizer
from memtrain.bench.peers import trl
from memtrain.bench.peers.generate import best_generate, load_peer
from memtrain.bench.progress import Progress
from memtrain.bench.settings import BenchSettings
from memtrain.bench.update import rows_of
from memtrain.types import Row

OURS, PEER = "memtrain", "TRL GRPOTrainer"


def bench_step(settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    """Seconds of a step each; phases of ours."""
    place = Place.of(settings)
    engine = load_engine(place, settings)
    progress("recording the rows of a step")
    recorded = record(engine, settings)
    loss, optimiser = configs(settings)
    rows: list[Row] = []
    sampled: dict[str, list[int]] = {OURS: [], PEER: []}
    phases: list[dict[str, float]] = []

    def rollout(inner: Any, who: str) -> list[Row]:
        replayer = Replayer(inner, recorded)
        found = step_rows(asyncio.run(experience_of(replayer, settings)), settings)
        sampled[who].append(replayer.new_tokens)
        if sorted(map(_key, found)) != sorted(map(_key, rows)):
            raise RuntimeError("a round gave other rows than were recorded")
        return found

    def our_step() -> None:
        metrics = asyncio.run(engine.update(rollout(engine, OURS), loss, optimiser))
        phases.append({key: metrics[key] for key in ("update_seconds", "tokens_packed", "tokens_separate")})

    rows += rows_of(engine, recorded, settings)
    contestants = [Contestant(OURS, our_step, settings={"micro_batch_tokens": engine.micro_batch_tokens})]
    skipped = {}
    reason = trl.missing()
    with tempfile.TemporaryDirectory() as folder:
        if reason:
            skipped[PEER] = reason
        else:
            contestants.append(_trl(place, settings, rows, lambda inner: rollout(inner, PEER), Path(folder)))
        found = contest(contestants, settings.rounds, place.device, progress)
    found["work"] = describe_rows(rows) | {"documents": 1}
    found["work"]["new_tokens"] = {who: counts[-1] for who, counts in sampled.items() if counts}
    found["skipped"] = skipped
    found["phases"] = phases[-settings.rounds :]
    return found


def _trl(place: Place, settings: BenchSettings, rows: list[Row], rollout: Any, folder: Path) -> Contestant:
    loss, optimiser = configs(settings)
    longest = max(len(row.prompt_ids) for row in rows) + max(len(row.completion_ids) for row in rows)
    fits = max(1, settings.peer_micro_batch_tokens // longest)
    # Whole micro-batches of one size: the largest divisor of the number of rows that the token budget allows.
    micro = max(n for n in range(1, len(rows) + 1) if len(rows) % n == 0 and n <= fits)
    group = math.gcd(len(rows), settings.group_size)
    sampling = best_generate(place.device)
    tokenizer = load_tokenizer(place)
    trainer = trl.make_trainer(
        load_peer(place.folder, place.device, place.dtype),
        tokenizer,
        rollout,
        len(rows),
        micro,
        group,
        loss,
        optimiser,
        folder,
        settings.memory_tokens,
        sampling,
    )
    told = {"micro_batch_rows": micro, "padded_row_tokens": longest, "sampling": asdict(sampling)}
    return Contestant(
        PEER,
        lambda: trl.step_seconds(trainer),
        warm_up=lambda: trl.warm_up(trainer, tokenizer, rows, sampling),
        settings=told | {"loss_type": "dr_grpo"},
        self_timed=True,
    )


def _key(row: Row) -> tuple[Any, ...]:
    return (row.prompt_ids, row.completion_ids, row.advantage)
