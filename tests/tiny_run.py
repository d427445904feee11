"""A tiny run from text to model: its recipe, what it leaves, and ways to stop it."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
from synthetic_corpus import write_corpus

from memtrain import pipeline, stages
from memtrain.recipe import Recipe, parse_recipe
from memtrain.rl.checkpoint import RunFolder

TIMINGS = {"seconds", "update_seconds", "tokens_per_second"}


@functools.cache
def home() -> Path:
    """A folder for what the tests of this process share."""
    folder = Path(tempfile.mkdtemp(prefix="memtrain-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def corpus() -> Path:
    """30 pages of synthetic text."""
    return write_corpus(home() / "pages.jsonl")


@functools.cache
def unbroken() -> Path:
    """A run that nobody disturbed; tests leave it as it is."""
    train(small(), home() / "unbroken")
    return home() / "unbroken"


def train(recipe: Recipe, run: Path, resume: bool = False) -> None:
    pipeline.train(recipe, RunFolder(run), resume=resume)


def small(**sections: dict[str, Any]) -> Recipe:
    """A run of seconds: two priming and three GRPO steps, likelihood rewards, KL on."""
    data: dict[str, dict[str, Any]] = {
        "model": {"name": str(tiny.model_folder("llama")), "dtype": "float32", "device": "cpu"},
        "corpus": {"source": str(corpus()), "min_chars": 10, "held_out": 0.3},
        "entities": {"finder": "rules"},
        "documents": {"train": 5, "held_out": 2, "related": 1, "random": 1},
        "memory": {
            "chunk_tokens": 96,
            "max_chunks": 2,
            "chunking": "passages",
            "memory_tokens": 8,
            "answer_tokens": 8,
            "style": "compact",
        },
        "tasks": {"probes": 2, "reconstruction_reward": "likelihood", "recall_reward": "likelihood"},
        "priming": {"steps": 2, "documents_per_step": 2, "lr": 1e-3},
        "train": {
            "steps": 3,
            "documents_per_step": 2,
            "group_size": 3,
            "lr": 1e-3,
            "warmup_steps": 2,
            "kl_coef": 0.05,
            "micro_batch_tokens": 512,
        },
        "eval": {"documents": 2, "probes": 2, "every": 2, "bootstrap": 100},
        "log": {"samples": 1, "checkpoint_every": 2},
    }
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values}
    return parse_recipe({"name": "small", "seed": 4, **data}, "test")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on interruptions."""
    return {
        "weights": hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": metrics(run),
        "evaluations": {file.name: json.loads(file.read_text()) for file in (run / "eval").iterdir()},
        "samples": {file.name: pq.read_table(file).to_pylist() for file in sorted((run / "samples").iterdir())},
        "checkpoints": sorted(folder.name for folder in (run / "checkpoints").iterdir()),
    }


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Which checkpoints are left depends on where the run was stopped; the evaluation between steps on whether it was
    stopped just before it. Nothing else does."""
    evaluations = {name: value for name, value in found["evaluations"].items() if not name.startswith("step-")}
    return {
        **found,
        "checkpoints": min(found["checkpoints"], key=lambda name: (name[0], -int(name[-6:]))),
        "evaluations": evaluations,
    }


def stop_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int, error: BaseException) -> None:
    """Raise once, when the metrics of a step are told to trackers."""
    told: Callable[..., None] = stages.Run._track
    armed = [True]

    def track(self: Any, at: str, number: int, values: dict[str, float]) -> None:
        told(self, at, number, values)
        if armed and (at, number) == (stage, step):
            armed.clear()
            raise error

    monkeypatch.setattr(stages.Run, "_track", track)


def made_up_reward(kind: str, text: str, golds: Any) -> float:
    """A random model never answers right: rewards that vary, by the text alone."""
    assert kind in ("exact", "f1")
    assert golds
    return (sum(map(ord, text)) % 7) / 6
