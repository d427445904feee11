"""The whole road with a tiny model: text in, model and numbers out, for every mode and reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_run import made_up_reward, metrics, outcome, small, train, unbroken

from memtrain import stages
from memtrain.engines.torch.engine import TorchEngine
from memtrain.rl import experience
from memtrain.types import Row

FILES = {"recipe.json", "metrics.jsonl", "summary.json", "documents", "eval", "model", "checkpoints", "samples"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes four fifths of a tiny run; the undisturbed one is made before anything is changed."""
    unbroken()
    monkeypatch.setattr(stages, "plot_all", lambda folder: None)


def test_a_run_leaves_everything_behind() -> None:
    assert {entry.name for entry in unbroken().iterdir()} >= FILES
    rows = metrics(unbroken())
    assert [(row["stage"], row["step"]) for row in rows] == [
        *[("priming", 1), ("priming", 2)],
        *[("grpo", 1), ("grpo", 2), ("grpo", 3)],
    ]
    for row in rows:
        assert row["grad_norm"] > 0
        assert row["tokens_packed"] < row["tokens_separate"]
    assert [row["lr"] for row in rows if row["stage"] == "grpo"] == pytest.approx([5e-4, 1e-3, 1e-3])  # warm-up
    first, *later = (row for row in rows if row["stage"] == "grpo")
    assert first["kl"] == pytest.approx(0, abs=1e-6)  # the start model is the policy after priming
    assert all(row["kl"] > 0 for row in later)
    assert all(row["clip_fraction"] == 0 for row in rows)  # one update a batch: the ratio is 1
    assert all(row["sampler_gap"] < 1e-3 for row in rows if row["stage"] == "grpo")
    assert {file.stem for file in (unbroken() / "eval").iterdir()} == {"before", "after_priming", "step-2", "after"}
    summary = json.loads((unbroken() / "summary.json").read_text())
    assert {"before", "after_priming", "after", "difference", "difference_by_stage"} <= set(summary)
    assert {"priming", "grpo"} <= set(summary["difference_by_stage"])
    assert [folder.name for folder in sorted((unbroken() / "checkpoints").iterdir())] == ["grpo-000002", "grpo-000003"]
    assert len(list(unbroken().glob("*.png"))) >= 2
    assert not list(unbroken().rglob(".partial-*"))
    assert not list(unbroken().rglob("*.part"))
    assert len(list((unbroken() / "samples").iterdir())) == 3


def test_the_model_of_a_run_is_its_last_checkpoint() -> None:
    prompt = tuple(range(20, 50))
    engine, resumed = tiny.engine(unbroken() / "model"), tiny.engine("llama")
    tiny.run(resumed.load(unbroken() / "checkpoints" / "grpo-000003"))
    assert tiny.run(engine.score(prompt, (9, 10))) == tiny.run(resumed.score(prompt, (9, 10)))


def test_the_same_recipe_gives_the_same_run(tmp_path: Path) -> None:
    train(small(), tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(unbroken())
    other = small().model_copy(update={"seed": 5})
    train(other, tmp_path / "other")
    assert metrics(tmp_path / "other") != metrics(unbroken())


# ---- modes and rewards ----------------------------------------------------------------------------------------------


def rows_of_run(monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """Collects the rows of every update of the run to come."""
    seen: list[list[Row]] = []
    real = TorchEngine.update

    async def update(self: TorchEngine, rows: Any, *rest: Any) -> dict[str, float]:
        seen.append(list(rows))
        return await real(self, rows, *rest)

    monkeypatch.setattr(TorchEngine, "update", update)
    return seen


@pytest.mark.parametrize("mode", ["full", "decoupled", "end-to-end"])
@pytest.mark.parametrize("reward", ["exact", "f1", "likelihood"])
def test_modes_and_rewards(mode: str, reward: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reward != "likelihood":
        monkeypatch.setattr(experience, "text_reward", made_up_reward)
    seen = rows_of_run(monkeypatch)
    recipe = small(
        tasks={"mode": mode, "reconstruction_reward": reward, "recall_reward": reward, "recall_samples": 2},
        priming={"steps": 0},
        train={"steps": 2},
        eval={"every": 0},
    )
    train(recipe, tmp_path / "run")
    (first, second) = metrics(tmp_path / "run")
    assert second["policy_tokens"] > 0
    assert second["grad_norm"] > 0
    kinds = {row.kind for rows in seen for row in rows}
    losses = {(row.kind, row.loss) for rows in seen for row in rows}
    assert "write" in kinds
    assert ("recall" in kinds) == (mode != "end-to-end")
    assert ("recall_reward" in first) == (mode != "end-to-end")
    if reward == "likelihood":
        assert ("answer", "cross_entropy") in losses
        assert ("recall", "policy") not in losses
    else:
        assert ("answer", "policy") in losses
        assert not any(loss == "cross_entropy" for _, loss in losses)
    coupled = first["reward"] - first["reconstruction_reward"]
    if mode == "full":
        assert coupled == pytest.approx(0.5 * first["recall_reward"])
    else:
        assert coupled == pytest.approx(0)


def test_groups_without_a_difference_are_dropped_and_counted(tmp_path: Path) -> None:
    """Exact match of a model that knows nothing: all rewards 0, no rows, no step, and the log says so."""
    recipe = small(
        tasks={"reconstruction_reward": "exact", "recall_reward": "exact", "recall_samples": 2},
        priming={"steps": 0},
        train={"steps": 1},
    )
    train(recipe, tmp_path / "run")
    (row,) = metrics(tmp_path / "run")
    assert row["groups"] == 0
    assert row["groups/e2e/dropped"] == 2
    assert row["groups/recall/dropped"] == 2 * 3 * 2
    assert row["dropped_groups"] == 14
    assert row["reward"] == row["grad_norm"] == row["rows"] == 0
    start = tiny.engine("llama")
    end = tiny.engine(tmp_path / "run" / "model")
    assert tiny.run(start.score((9, 10, 11), (12,))) == tiny.run(end.score((9, 10, 11), (12,)))
