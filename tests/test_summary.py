"""summary.json, the plots drawn from it, and the trackers."""

from __future__ import annotations

import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from memtrain.errors import UserError
from memtrain.evaluation.proxy import EvalResult
from memtrain.recipe import Recipe
from memtrain.report import plots, summary
from memtrain.report.trackers import Tracker


def result(label: str, gain: float, truncated: float = 0.5, documents: int = 6) -> EvalResult:
    """Gains that differ between documents by their number, and between evaluations by ``gain``."""
    records: list[dict[str, Any]] = []
    for i in range(documents):
        value = float(i) + gain
        records.append({"kind": "reading", "document": f"d{i}", "sample": 0, "truncated": truncated, "memory": "x"})
        records.append(
            {
                "kind": "recall",
                "document": f"d{i}",
                "sample": 0,
                "distance": i % 2,
                "recall_likelihood_gain": value,
                f"recall_likelihood_gain_distance_{i % 2}": value,
                "entities_kept": min(1.0, 0.1 * gain),
                "recall_em": 0.0,
            }
        )
    return EvalResult(label, records, 100, 0, {"documents": documents})


def stages(priming: bool = True) -> dict[str, EvalResult]:
    found = {"before": result("before", 0), "after": result("after", 3, 0.25)}
    return found | ({"after_priming": result("after_priming", 1)} if priming else {})


def made(priming: bool = True) -> dict[str, Any]:
    return summary.summarise(stages(priming), Recipe(name="r"), {"before": 1.234, "grpo": 60.0})


def test_keys_and_numbers() -> None:
    data = made()
    assert data["before"]["recall_likelihood_gain"]["mean"] == 2.5
    assert data["difference"]["recall_likelihood_gain"] == {"mean": 3.0, "ci95": [3.0, 3.0], "n": 6}
    assert data["difference_by_stage"]["priming"]["recall_likelihood_gain"]["mean"] == 1
    assert data["difference_by_stage"]["grpo"]["recall_likelihood_gain"]["mean"] == 2
    assert data["fingerprint"] == Recipe(name="r").fingerprint()
    assert data["seconds"] == {"before": 1.2, "grpo": 60.0}
    assert {"cores", "processor", "system"} <= data["machine"].keys()
    assert {"python", "memtrain", "torch"} <= data["versions"].keys()
    for stage in ("before", "after_priming", "after", "difference"):
        for value in data[stage].values():
            assert set(value) == {"mean", "ci95", "n"}


def test_without_priming_all_of_it_is_grpo() -> None:
    data = made(priming=False)
    assert "after_priming" not in data
    assert data["difference_by_stage"] == {"grpo": data["difference"]}


def test_without_grpo_all_of_it_is_priming() -> None:
    primed = result("after_priming", 1)
    data = summary.summarise({"before": result("before", 0), "after_priming": primed, "after": primed}, Recipe(), {})
    assert list(data["difference_by_stage"]) == ["priming"]
    assert data["difference_by_stage"]["priming"] == data["difference"]


def test_an_unfinished_run_has_no_difference() -> None:
    data = summary.summarise({"before": result("before", 0)}, Recipe(), {})
    assert "difference" not in data
    assert "after" not in data


def test_verdict_knows_which_way_is_better() -> None:
    data = made()
    assert "recall_likelihood_gain" in data["better"]
    assert "truncated" in data["better"]  # fell by a quarter
    assert "recall_em" not in data["better"] + data["worse"]  # did not move
    worse = summary.verdict({"truncated": {"mean": 0.1, "ci95": [0.05, 0.2], "n": 9}})
    assert worse == {"better": [], "worse": ["truncated"]}
    neither = {
        "memory_tokens": {"mean": 5.0, "ci95": [4.0, 6.0], "n": 9},
        "recall_em": {"mean": 0.1, "ci95": [-0.1, 0.3], "n": 9},
        "recall_f1": {"mean": 0.1, "ci95": [None, None], "n": 1},
    }
    assert summary.verdict(neither) == {"better": [], "worse": []}


def test_file_is_plain_json_and_comes_back(tmp_path: Path) -> None:
    path = summary.write_summary(tmp_path, made())
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == summary.read_summary(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_missing_and_broken_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no summary\.json"):
        summary.read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        summary.read_summary(tmp_path)


def test_table_and_headline() -> None:
    head, *rows = summary.table(made())
    assert head == [
        "metric",
        "unit",
        "n",
        "before",
        "after priming",
        "after",
        "priming gave",
        "grpo gave",
        "after - before",
    ]
    assert all(len(row) == len(head) for row in rows)
    assert not any("chunks later" in row[0] for row in rows)
    assert any("chunks later" in row[0] for row in summary.table(made(), distances=True))
    assert "(better; n = 6 documents)" in summary.headline(made())
    assert "priming gave" not in summary.table(made(priming=False))[0]


def test_pictures(tmp_path: Path) -> None:
    lines = [{"stage": "priming", "step": s, "cross_entropy": 2.0, "entropy": 0.0} for s in (1, 2)]
    lines += [{"stage": "grpo", "step": s, "reward": s / 9, "kl": 0.0, "grad_norm": float("nan")} for s in range(1, 9)]
    text = "\n".join(map(json.dumps, lines)) + '\n{"stage": "grp'  # as a crash leaves it
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    summary.write_summary(tmp_path, made())
    pictures = plots.plot_all(tmp_path)
    assert [path.name for path in pictures] == ["curves.png", "before_after.png", "recall_by_distance.png"]
    for path in pictures:
        pixels = imread(path)
        assert pixels.shape[0] > 300
        assert pixels.std() > 0.05  # something is drawn


def test_steps_count_on_after_priming() -> None:
    rows = [{"stage": "priming", "step": s, "entropy": 0.0, "cross_entropy": 2.0} for s in (1, 2)]
    rows += [{"stage": "grpo", "step": s, "entropy": 1.5, "cross_entropy": None} for s in (1, 2)]
    assert plots._series(rows, "entropy") == [("grpo", 3.0, 1.5), ("grpo", 4.0, 1.5)]
    assert plots._series(rows, "cross_entropy") == [("priming", 1.0, 2.0), ("priming", 2.0, 2.0)]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert plots.plot_all(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert plots.plot_all(tmp_path) == []


def test_damage_inside_the_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        plots.read_metrics(tmp_path / "metrics.jsonl")


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60))
def test_smoothing_stays_inside_and_keeps_constants(values: list[float]) -> None:
    smoothed = plots.smooth(values)
    assert len(smoothed) == len(values)
    assert min(values) - 1e-9 <= smoothed.min() <= smoothed.max() <= max(values) + 1e-9
    assert plots.smooth([2.0] * 30) == pytest.approx([2.0] * 30)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install "memtrain\[wandb\]"'):
        Tracker("wandb", "p", "n", {}, tmp_path)


def test_a_tracker_gets_finite_numbers_and_may_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[tuple[dict[str, float], int]] = []

    def log(values: dict[str, float], step: int) -> None:
        if step == 3:
            raise ConnectionError("gone")
        sent.append((values, step))

    module = types.ModuleType("trackio")
    module.__dict__.update(init=lambda **_: None, log=log, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", module)
    tracker = Tracker("trackio", "p", "n", {"seed": 0}, tmp_path)
    tracker.log(1, {"reward": 0.5, "nan": float("nan"), "text": "x", "flag": True})
    with pytest.warns(UserWarning, match="gone"):
        tracker.log(3, {"reward": 1.0})
    tracker.log(4, {"reward": 1.0})
    tracker.close()
    assert sent == [({"reward": 0.5}, 1)]


def test_no_tracker_does_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker = Tracker("none", "p", "n", {}, tmp_path)
        tracker.log(1, {"reward": 1.0})
        tracker.close()
