"""The real model on the real corpus, briefly: `make test-slow`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch

from memtrain.bench.peers.generate import load_peer
from memtrain.bench.peers.per_row import PerRowTrainer
from memtrain.bench.update import GradientTap, cosine
from memtrain.cli import main
from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import load_model
from memtrain.recipe import load_recipe
from memtrain.settings import ModelSettings
from memtrain.types import Row

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("default_model"), pytest.mark.timeout(900)]
SMALL = [
    *["documents.train=8", "documents.held_out=3", "eval.documents=3", "eval.probes=2", "eval.bootstrap=200"],
    *["priming.steps=4", "train.steps=2", "train.documents_per_step=2", "train.group_size=4"],
]


def test_the_demo_road_and_reading_with_its_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "demo-cpu", "--out", str(run), "--set", *SMALL]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"]["recall_likelihood_gain"]["n"] == 3
    assert set(summary["difference_by_stage"]) == {"priming", "grpo"}
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    primed = [row["cross_entropy"] for row in losses if row["stage"] == "priming"]
    assert primed[-1] < primed[0]
    capfd.readouterr()
    text = tmp_path / "text.txt"
    text.write_text("The bridge of Arta was built by Master Markos in 1602. " * 40)
    assert main(["read", str(text), "--ask", "Who built the bridge?", "--model", str(run / "model")]) == 0
    assert "answer:" in capfd.readouterr().out
    assert main(["eval", str(run)]) == 0
    assert "recall" in capfd.readouterr().out


def test_a_dry_run_measures_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "demo-cpu", "--dry-run", "--set", *SMALL]) == 0
    shown = capfd.readouterr().out
    for word in ("tokens", "GiB", "s a step", f"x {load_recipe('demo-cpu', SMALL).train.steps}"):
        assert word in shown
    assert not list(tmp_path.iterdir())


def test_gradients_in_bfloat16_are_as_near_to_float32s_as_row_by_row(default_model: Path) -> None:
    """Advantages of a group cancel, so a gradient is a difference of large sums and rounding shows; it must not show
    more than in plain training with transformers."""
    loss, still = LossConfig(kl_coef=0.0), OptimiserConfig(lr=0.0)
    engine = TorchEngine(load_model(default_model, ModelSettings(dtype="bfloat16", device="cpu")))
    encode = engine.tokenizer.encode
    stem = encode("The bridge of Arta crosses the river Arachthos; its legend is told in many songs. " * 12)
    rows = []
    for number in range(8):
        prompt = (*stem, *encode(f"Note {number}: the masons built by day, and by night it fell. " * 5))
        completion = tuple(encode(f" In version {number} the wife of the master builder is walled into the pier."))
        rows.append(Row(prompt, completion, (-1.0,) * len(completion), 1.0 if number % 2 else -1.0))
    asyncio.run(engine.update(rows[:1], loss, still))
    tap = GradientTap(engine._adamw())
    asyncio.run(engine.update(rows, loss, still))
    found = {"ours": tap.gradient}
    for dtype in (torch.bfloat16, torch.float32):
        trainer = PerRowTrainer(load_peer(default_model, torch.device("cpu"), dtype), None, 1024)
        tap = GradientTap(trainer.optimiser)
        trainer.update(rows, loss, still)
        found[str(dtype)] = tap.gradient
    exact = found["torch.float32"]
    ours, theirs = cosine(found["ours"], exact), cosine(found["torch.bfloat16"], exact)
    print(f"cosine with the float32 gradient: ours {ours:.5f}, row by row {theirs:.5f}; ", end="")
    print(f"with each other {cosine(found['ours'], found['torch.bfloat16']):.5f}")
    assert ours > theirs - 3e-3
