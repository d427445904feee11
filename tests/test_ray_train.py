"""Workers of a real Ray cluster on this machine, through the command line: a tiny model, the whole road."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_run
from safetensors.torch import load_file

pytest.importorskip("ray", reason="needs the extra ray")

LONG = {"train.steps": 16, "log.samples": 4, "log.checkpoint_every": 4, "eval.every": 0, "train.documents_per_step": 4}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_run's recipe as a file; 20 documents, 4 a step."""
    folder = tmp_path_factory.mktemp("recipe")
    tiny.save_model(folder / "model", spread=0.05)
    settings = tiny_run.small(documents={"train": 20, "held_out": 4}, model={"name": str(folder / "model")})
    lines = []
    for section, values in settings.model_dump(mode="json", exclude_defaults=True).items():
        if isinstance(values, dict):
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        else:
            lines.insert(0, f"{section} = {json.dumps(values)}")
    (folder / "tiny.toml").write_text("\n".join(lines))
    return folder / "tiny.toml"


def start(recipe: Path, out: Path, *options: str, **settings: Any) -> subprocess.Popen[str]:
    changed = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-m", "memtrain", "train", str(recipe), "--out", str(out), *options]
    if changed:
        command += ["--set", *changed]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def train(recipe: Path, out: Path, *options: str, **settings: Any) -> str:
    process = start(recipe, out, *options, **settings)
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return said + errors


def long(**more: Any) -> dict[str, Any]:
    return {key.replace(".", "__"): value for key, value in LONG.items()} | more


@pytest.mark.slow
def test_two_workers_train_as_one_does_and_any_number_goes_on(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "one", "--workers", "1")
    said = train(recipe, tmp_path / "two", "--workers", "2", train__steps=2)
    assert "grpo step 2" in said  # rank 0's lines reach this terminal
    train(recipe, tmp_path / "two", "--workers", "4", "--resume")
    alone, shared = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    start_ = load_file(recipe.parent / "model" / "model.safetensors")
    off = sum(float((alone[name] - shared[name]).double().square().sum()) for name in alone) ** 0.5
    moved = sum(float((alone[name] - start_[name]).double().square().sum()) for name in alone) ** 0.5
    assert moved > 0
    assert off / moved < 1e-3  # five updates of AdamW, each of which enlarges rounding
    one, two = (tiny_run.metrics(tmp_path / name) for name in ("one", "two"))
    assert [(row["stage"], row["step"]) for row in two] == [(row["stage"], row["step"]) for row in one]
    for ours, theirs in zip(one, two, strict=True):
        for name in ("stage", "tokens_packed"):  # packing is each worker's own
            ours.pop(name), theirs.pop(name)
        assert theirs == pytest.approx(ours, rel=1e-2, abs=1e-3)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(recipe: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(recipe, unbroken, "--workers", "2", **long())
    process = start(recipe, broken, "--workers", "2", **long())
    waited = time.monotonic()
    while not (broken / "checkpoints" / "grpo-000008").exists():
        assert process.poll() is None
        assert time.monotonic() - waited < 180
        time.sleep(0.02)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in p.name()]
    workers = workers or [p for p in psutil.process_iter() if "RayTrainWorker" in " ".join(_command(p))]
    os.kill(workers[-1].pid, signal.SIGKILL)
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    assert "resuming after step" in said + errors
    assert tiny_run.metrics(broken) == tiny_run.metrics(unbroken)
    assert seen(broken) == seen(unbroken)
    assert len(seen(broken)) == 16 * 4
    ours, theirs = ((run / "model" / "model.safetensors").read_bytes() for run in (unbroken, broken))
    assert ours == theirs


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def seen(run: Path) -> list[tuple[int, str]]:
    """(step, document) of every group that was trained on."""
    found = []
    for file in sorted((run / "samples").glob("grpo-*.parquet")):
        rows = pq.read_table(file, columns=["train_step", "group_id"]).to_pylist()
        found += sorted({(row["train_step"], row["group_id"]) for row in rows})
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        (["--workers", "2", "--set", "model=/no/such/model"], ["/no/such/model", "model.name"]),
        (["--workers", "2", "--set", "memory.chunk_tokens=90000"], ["memory.chunk_tokens"]),
        (["--workers", "2", "--address", "127.0.0.1:9"], ["127.0.0.1:9", "ray start --head"]),
    ],
)
def test_a_mistake_is_one_sentence(recipe: Path, tmp_path: Path, options: list[str], pieces: list[str]) -> None:
    process = start(recipe, tmp_path / "run", *options)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("memtrain: ")
    assert all(piece in last for piece in pieces)
