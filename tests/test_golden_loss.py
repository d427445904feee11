"""Three tiny steps against numbers on file: notices any change of what is trained, wanted or not.

After a change that is meant to alter the numbers, look at the difference and write them anew:

    MEMTRAIN_GOLDEN=write python -m pytest tests/test_golden_loss.py

Everything else is held by oracles in other files; this one only tells that something moved. The tolerance is wide
enough for other processors and versions of torch, and far below the effect of a real change.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_run import made_up_reward

from memtrain.recipe import Recipe, parse_recipe
from memtrain.rl import experience
from memtrain.rl.checkpoint import RunFolder
from memtrain.rl.trainer import Trainer
from memtrain.types import Mention, TrainingDocument

FILE = Path(__file__).parent / "golden" / "loss.json"
KEPT = ("loss", "grad_norm", "kl", "cross_entropy", "rows", "policy_tokens", "tokens_packed", "tokens_separate")
KEPT += ("reward", "reconstruction_reward", "recall_reward", "memory_tokens", "dropped_groups")


class Nobody:
    """A watcher that looks away."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def metrics(self, step: int, values: dict[str, Any]) -> None: ...
    def sample(self, text: str, reward: float | None = None) -> None: ...


def documents() -> list[TrainingDocument]:
    """Written here, so that only the agent, the tasks, the loss and the engine are in the numbers."""
    rng = random.Random(0)
    names = ["Ada Lovelace", "Turin", "Konrad Zuse", "1843", "Grace Hopper", "40%"]
    found = []
    for number in range(4):
        parts = []
        for part in range(4):
            a, b = rng.sample(names, 2)
            parts.append(f"Document {part + 1}:\nThe engine of [MASK] was seen by {a} near {b} before the loom.")
        text = "\n\n".join(parts)
        seen = tuple(Mention(name) for name in names if name in text)
        ids = tuple(f"p{i}" for i in range(4))
        found.append(TrainingDocument(f"train-{number}", text, "Babbage", "name", (), "p0", ids, number, 4, 100, seen))
    return found


def recipe(reward: str) -> Recipe:
    return parse_recipe(
        {
            "name": "golden",
            "seed": 7,
            "memory": {
                "chunk_tokens": 128,
                "max_chunks": 3,
                "memory_tokens": 10,
                "answer_tokens": 10,
                "style": "compact",
                "chunking": "passages",
            },
            "tasks": {
                "probes": 2,
                "recall_samples": 2,
                "reconstruction_reward": reward,
                "recall_reward": reward,
            },
            "priming": {"steps": 1, "documents_per_step": 2, "lr": 1e-3},
            "train": {
                "steps": 2,
                "documents_per_step": 2,
                "group_size": 3,
                "lr": 1e-3,
                "warmup_steps": 0,
                "kl_coef": 0.1,
                "micro_batch_tokens": 600,
            },
            "eval": {"every": 0},
            "log": {"samples": 0, "checkpoint_every": 0},
        },
        "golden",
    )


def numbers(reward: str, folder: Path) -> list[dict[str, float]]:
    """One priming and two GRPO steps on the tiny Llama in float32."""
    run = RunFolder(folder)
    trainer = Trainer(tiny.engine("llama", micro_batch_tokens=600), recipe(reward), documents(), run, Nobody())

    async def go() -> None:
        await trainer.prime()
        await trainer.train()

    tiny.run(go())
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [{key: row[key] for key in ("step", *KEPT) if key in row} for row in rows]


@pytest.mark.parametrize("reward", ["exact", "likelihood"])
def test_three_steps_give_the_numbers_on_file(reward: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experience, "text_reward", made_up_reward)
    got = numbers(reward, tmp_path)
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("MEMTRAIN_GOLDEN") == "write":
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(golden | {reward: got}, indent=1, sort_keys=True) + "\n")
        pytest.skip("golden numbers written anew")
    assert len(got) == 3
    for mine, wanted in zip(got, golden[reward], strict=True):
        assert mine == pytest.approx(wanted, rel=1e-3, abs=1e-5), "see the top of this file"
