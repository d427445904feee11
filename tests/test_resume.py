"""Stopped anywhere and resumed, a run ends with the numbers of one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_run import comparable, metrics, outcome, small, stop_at, train, unbroken

from memtrain import stages
from memtrain.engines.torch.engine import TorchEngine
from memtrain.recipe import Recipe
from memtrain.rl import experience
from memtrain.rl.checkpoint import Position, RunFolder

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes four fifths of a tiny run; the undisturbed one is made before anything is changed."""
    unbroken()
    monkeypatch.setattr(stages, "plot_all", lambda folder: None)


@pytest.mark.parametrize(("stage", "step"), [("priming", 1), ("priming", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)])
def test_interrupted_after_any_step(stage: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: what was finished is saved at once."""
    stop_at(monkeypatch, stage, step, KeyboardInterrupt())
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(small(), run)
    assert RunFolder(run).latest() == Position(stage, step)
    assert not (run / "summary.json").exists()
    train(small(), run, resume=True)
    assert comparable(outcome(run)) == comparable(outcome(unbroken()))


@pytest.mark.parametrize(
    ("stage", "step", "left"), [("priming", 1, None), ("grpo", 1, "priming-2"), ("grpo", 3, "grpo-2")]
)
def test_killed_after_a_checkpoint(
    stage: str,
    step: int,
    left: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash saves nothing: the run goes back to its last checkpoint, and takes the later metrics back too."""
    stop_at(monkeypatch, stage, step, RuntimeError("power cut"))
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power cut"):
        train(small(), run)
    found = RunFolder(run).latest()
    assert (f"{found.stage}-{found.step}" if found else None) == left
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write('{"stage": "grpo", "st')  # cut in the middle of a line
    train(small(), run, resume=True)
    assert comparable(outcome(run)) == comparable(outcome(unbroken()))


@pytest.mark.parametrize("what", ["sampling", "scoring", "update"])
def test_interrupted_in_the_middle_of_a_step(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the engine works on the second GRPO step: the step never happened."""
    begun: list[int] = []
    collect, report = experience.collect, TorchEngine._report

    async def counted(*args: Any) -> Any:
        begun.append(args[-1])
        return await collect(*args)

    def interrupt(self: TorchEngine, at: str, done: int, total: int) -> None:
        report(self, at, done, total)
        if begun and begun[-1] == 2 and at == what and len(begun) == 2:
            begun.append(2)
            raise KeyboardInterrupt

    monkeypatch.setattr("memtrain.rl.trainer.collect", counted)
    monkeypatch.setattr(TorchEngine, "_report", interrupt)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(small(), run)
    assert RunFolder(run).latest() == Position("grpo", 1)
    train(small(), run, resume=True)
    assert comparable(outcome(run)) == comparable(outcome(unbroken()))


def test_interrupted_while_evaluating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, stopped = stages.measure, []

    async def measure(engine: Any, held_out: Any, recipe: Recipe, label: str, *others: Any) -> Any:
        result = await real(engine, held_out, recipe, label, *others)
        if label not in stopped:
            stopped.append(label)
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(stages, "measure", measure)
    run = tmp_path / "run"
    for attempt in range(5):
        try:
            train(small(), run, resume=attempt > 0)
            break
        except KeyboardInterrupt:
            continue
    assert stopped == ["before", "after_priming", "step-2", "after"]
    assert comparable(outcome(run)) == comparable(outcome(unbroken()))


def test_a_finished_run_trained_further(tmp_path: Path) -> None:
    longer = small(train={"steps": 4})
    train(longer, tmp_path / "long")
    train(small(train={"steps": 2}), tmp_path / "short")
    train(longer, tmp_path / "short", resume=True)
    assert comparable(outcome(tmp_path / "short")) == comparable(outcome(tmp_path / "long"))
    assert json.loads((tmp_path / "short" / "recipe.json").read_text())["train"]["steps"] == 4


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    """The signal itself, sent to the command while it trains: a checkpoint, one sentence, exit status 130."""
    recipe, run = small(train={"steps": 10_000}, eval={"every": 0}, log={"checkpoint_every": 0}), tmp_path / "run"
    file = tmp_path / "long.toml"
    sections = recipe.model_dump(mode="json", exclude_none=True)
    plain = [f"{key} = {json.dumps(value)}" for key, value in sections.items() if not isinstance(value, dict)]
    tables = {name: values for name, values in sections.items() if isinstance(values, dict)}
    tables["qa.train"] = tables["qa"].pop("train")
    for name, values in tables.items():
        plain += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    file.write_text("\n".join(plain))
    command = [sys.executable, "-m", "memtrain", "train", str(file), "--out", str(run)]
    # Sums depend on how they are split: the same numbers are promised for the same number of threads.
    threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=threads,
        # Tests that run in the background of a shell inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= 4:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    found = RunFolder(run).latest()
    assert found is not None
    assert found.stage == "grpo"
    assert [(row["stage"], row["step"]) for row in metrics(run)][-1] == ("grpo", found.step)
    ended = small(train={"steps": found.step + 1}, eval={"every": 0}, log={"checkpoint_every": 0})
    train(ended, run, resume=True)
    train(ended, tmp_path / "whole")
    assert comparable(outcome(run)) == comparable(outcome(tmp_path / "whole"))


def test_a_lora_run_resumes_and_its_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(model={"lora_rank": 2}, train={"gradient_checkpointing": True, "steps": 2})
    train(recipe, tmp_path / "whole")
    stop_at(monkeypatch, "grpo", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    adapters = [(tmp_path / name / "model" / "adapter_model.safetensors").read_bytes() for name in ("run", "whole")]
    assert adapters[0] == adapters[1]
    assert tiny.engine(tmp_path / "run" / "model").context_tokens == tiny.CONTEXT
