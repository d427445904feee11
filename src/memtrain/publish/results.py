"""The numbers and pictures that belong to the exported weights, and to no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from memtrain.evaluation.proxy import EvalResult
from memtrain.publish.source import Source
from memtrain.report.plots import comparison, learning_curves, read_metrics, recall_by_distance
from memtrain.report.summary import FILE, read_summary, summarise

PICTURES = {
    "curves.png": "Learning curves",
    "before_after.png": "Before and after, held-out documents",
    "recall_by_distance.png": "Recall by distance",
}
NOT_OF_THE_RUN = ("machine", "versions")


def numbers(source: Source) -> dict[str, Any]:
    """What is known of a run, in the form of ``summary.json``; empty where nothing is.

    A checkpoint on the way gets the evaluations up to its step alone, the last of them as ``after`` only where it
    measured these very weights.
    """
    if source.facts is None:
        return {}
    if source.is_end and (source.facts / FILE).is_file():
        return read_summary(source.facts)
    if source.recipe is None or not (source.facts / "eval").is_dir():
        return {}
    files = {"before": "before", "after_priming": "after_priming", "after": _label(source)}
    found = {}
    for stage, label in files.items():
        file = source.facts / "eval" / f"{label}.json"
        passed = stage != "after_priming" or source.position is None or source.position.stage == "grpo"
        if label and passed and file.is_file():
            found[stage] = EvalResult.load(file)
    data = summarise(found, source.recipe, {})
    return {key: value for key, value in data.items() if key not in NOT_OF_THE_RUN}


def _label(source: Source) -> str:
    """Name of the evaluation that measured a checkpoint's weights; empty where there cannot be one."""
    position, recipe = source.position, source.recipe
    if position is None or recipe is None:
        return "after"
    if position.stage == "priming":
        return "after_priming" if position.step == recipe.priming.steps else ""
    return "after" if position.step == recipe.train.steps else f"step-{position.step}"


def draw(source: Source, data: dict[str, Any], folder: Path) -> list[str]:
    """Draw what there are numbers for; returns the names of the pictures."""
    if source.facts is None:
        return []
    metrics = source.facts / "metrics.jsonl"
    if metrics.is_file():
        rows = [row for row in read_metrics(metrics) if _passed(source, row)]
        own = folder / "metrics.jsonl.part"
        own.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        learning_curves(own, folder / "curves.png")
        own.unlink()
    elif (source.facts / "curves.png").is_file():  # an export of an export
        shutil.copyfile(source.facts / "curves.png", folder / "curves.png")
    if data:
        comparison(data, folder / "before_after.png")
        recall_by_distance(data, folder / "recall_by_distance.png")
    return [name for name in PICTURES if (folder / name).is_file()]


def _passed(source: Source, row: dict[str, Any]) -> bool:
    """Whether a step's metrics belong to the way to these weights."""
    position = source.position
    if position is None or (row.get("stage") == "priming" and position.stage == "grpo"):
        return True
    return bool(row.get("stage") == position.stage and row.get("step", 0) <= position.step)


def data_facts(source: Source) -> dict[str, Any]:
    """The manifest of the run's documents; empty where there is none."""
    if source.facts is None:
        return {}
    try:
        manifest = json.loads((source.facts / "documents" / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
