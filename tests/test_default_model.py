"""The real model on the real corpus, briefly: `make test-slow`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memtrain.cli import main
from memtrain.recipe import load_recipe

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
