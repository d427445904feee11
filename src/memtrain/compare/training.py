"""What the training runs of a comparison were like: the first thing to read where a difference is not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from memtrain.report.plots import read_metrics

SHARE = 0.25
"""First and last share of the steps that are set against each other."""
WATCHED = (
    "reward",
    "reconstruction_reward",
    "recall_reward",
    "dropped_groups",
    "memory_tokens",
    "truncated",
    "entropy",
)


def runs_of(out: Path) -> list[Path]:
    """Folders of all training runs, in order of their names."""
    return sorted(file.parent for file in out.glob("seed-*/*/metrics.jsonl"))


def training_table(out: Path) -> list[dict[str, Any]]:
    """One row a run and stage: steps, seconds, and the mean of each watched metric over the first and the last quarter
    of its steps."""
    rows: list[dict[str, Any]] = []
    for folder in runs_of(out):
        lines = read_metrics(folder / "metrics.jsonl")
        for stage in dict.fromkeys(line["stage"] for line in lines):
            steps = [line for line in lines if line["stage"] == stage]
            row: dict[str, Any] = {
                "run": f"{folder.parent.name}/{folder.name}",
                "stage": stage,
                "steps": len(steps),
                "seconds": sum(line["seconds"] for line in steps),
                "groups": _mean(steps, "groups"),
            }
            if stage == "grpo":
                n = max(1, round(len(steps) * SHARE))
                for name in WATCHED:
                    row[name] = [_mean(steps[:n], name), _mean(steps[-n:], name)]
            rows.append(row)
    return rows


def _mean(lines: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if name in line]
    return fmean(values) if values else None
