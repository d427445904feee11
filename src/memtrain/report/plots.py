"""Pictures of a run as PNG: learning curves, before and after, recall by distance.

Drawn without a display. Colours are Okabe and Ito's, which people with colour-blindness tell apart; marks differ too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from memtrain.errors import UserError
from memtrain.evaluation.metrics import METRICS, ordered, split_name
from memtrain.report.summary import STAGES, read_summary

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#E69F00", "#009E73", "#8C8C8C", "#000000"
STAGE_LOOK = {"before": (GREY, "o"), "after_priming": (ORANGE, "s"), "after": (BLUE, "^")}
BY_LENGTH = {
    "exact": "exact match",
    "f1": "F1",
    "kept": "answer in the last memory, share",
    "gain": "likelihood gain, nats",
}
"""What the vertical axis of a score over length says."""
LINES = (BLUE, ORANGE, GREEN, BLACK, GREY)
DPI = 150
SMOOTHING = 0.1
"""Share of the curve's points in the moving mean that is drawn over the raw points."""

CURVES: tuple[tuple[str, str, str], ...] = (
    ("reward", "trajectory reward", "reward"),
    ("recall_reward", "recall reward", "reward (nats where it is a likelihood gain)"),
    ("reconstruction_reward", "reconstruction reward", "reward (nats where it is a likelihood gain)"),
    ("reward_std_in_group", "spread of the reward in a group", "standard deviation"),
    ("entities_kept", "entities kept", "share"),
    ("memory_tokens", "memory length", "tokens"),
    ("truncated", "memories cut at the limit", "share"),
    ("dropped_groups", "dropped groups", "groups a step"),
    ("kl", "KL to the start model", "nats a token"),
    ("entropy", "entropy", "nats a token"),
    ("cross_entropy", "cross-entropy of known answers", "nats a token"),
    ("grad_norm", "gradient norm, before clipping", "norm"),
)
"""Panels of the learning curves: key in ``metrics.jsonl``, title, unit; a key that no step reports gets no panel."""
SUPERVISED = ("cross_entropy", "grad_norm")
"""What priming steps have too; their other metrics are of an empty policy loss and say nothing."""
COMPARED = (
    "recall_likelihood_gain",
    "entities_kept",
    "recall_em",
    "recall_f1",
    "reconstruction_em",
    "reconstruction_f1",
    "reconstruction_likelihood_gain",
    "memory_tokens",
    "truncated",
)
CONTROLS = {
    "recall_em": ("closed_book_recall_em",),
    "recall_f1": ("closed_book_recall_f1",),
    "reconstruction_em": ("closed_book_em", "full_context_em"),
    "reconstruction_f1": ("closed_book_f1", "full_context_f1"),
}
"""Levels drawn across a panel: those of the untrained model."""


def plot_all(folder: Path) -> list[Path]:
    """Draw what the run's folder has the numbers for, next to them; returns the pictures' paths."""
    made = []
    if (folder / "metrics.jsonl").is_file():
        made.append(learning_curves(folder / "metrics.jsonl", folder / "curves.png"))
    if (folder / "summary.json").is_file():
        summary = read_summary(folder)
        made.append(comparison(summary, folder / "before_after.png"))
        made.append(recall_by_distance(summary, folder / "recall_by_distance.png"))
    return [path for path in made if path is not None]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``; a last line that a crash cut short is left out. Raises UserError on other damage."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path} line {number} is not valid JSON; remove that line") from None
    return [row for row in rows if isinstance(row, dict)]


def learning_curves(metrics: Path, out: Path) -> Path | None:
    """One panel a metric over the optimiser steps, priming and GRPO marked; None where there is nothing to draw."""
    rows = read_metrics(metrics)
    panels = [(title, unit, points) for key, title, unit in CURVES if (points := _series(rows, key))]
    if not panels:
        return None
    figure, axes = grid(len(panels))
    figure.suptitle("Learning curves (points: steps; line: moving mean)")
    for panel, (title, unit, points) in zip(axes, panels, strict=True):
        for stage, colour, mark in (("priming", ORANGE, "s"), ("", BLUE, "o")):
            chosen = [(x, y) for name, x, y in points if (name == "priming") == (stage == "priming")]
            if chosen:
                x, y = np.array(chosen).T
                panel.plot(x, y, mark, color=colour, alpha=0.35, markersize=3)
                panel.plot(x, smooth(y), color=colour, label=stage or "GRPO")
        panel.set_title(f"{title}, n = {len(points)} steps", fontsize=9)
        panel.set_ylabel(unit, fontsize=7)
        panel.set_xlabel("step", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len({name == "priming" for name, _, _ in points}) > 1:
            panel.legend(fontsize=7)
    return save(figure, out)


def smooth(values: Sequence[float]) -> np.ndarray:
    """Centred moving mean over a tenth of the points; windows shrink at both ends."""
    data = np.asarray(values, dtype=float)
    half = max(int(len(data) * SMOOTHING) // 2, 1 if len(data) > 4 else 0)
    return np.array([data[max(0, i - half) : i + half + 1].mean() for i in range(len(data))])


def comparison(summary: Mapping[str, Any], out: Path) -> Path | None:
    """Bars of every evaluation with 95% intervals; dashed lines: the untrained model's controls."""
    stages = [stage for stage in STAGES if stage in summary]
    names = [name for name in COMPARED if any(_has(summary[stage], name) for stage in stages)]
    if not names:
        return None
    figure, axes = grid(len(names))
    figure.suptitle("Held-out documents, mean and 95% bootstrap interval over documents")
    for panel, name in zip(axes, names, strict=True):
        counts = set()
        for place, stage in enumerate(stages):
            if not _has(summary[stage], name):
                continue
            value = summary[stage][name]
            counts.add(value["n"])
            panel.bar(place, value["mean"], color=STAGE_LOOK[stage][0], width=0.7)
            panel.errorbar(place, value["mean"], yerr=_error([value]), color=BLACK, capsize=4)
        for look, control in zip(("--", ":"), CONTROLS.get(name, ()), strict=False):
            if "before" in summary and _has(summary["before"], control):
                label = control.rsplit("_", 1)[0].removesuffix("_recall").replace("_", " ")
                panel.axhline(summary["before"][control]["mean"], color=GREEN, linestyle=look, label=label)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=7)
        panel.axhline(0, color=BLACK, linewidth=0.6)
        panel.set_title(f"{METRICS[name].title}\nn = {_counts(counts)} documents", fontsize=8)
        panel.set_ylabel(METRICS[name].unit, fontsize=8)
        panel.set_xticks(range(len(stages)), [stage.replace("_", "\n") for stage in stages], fontsize=8)
    return save(figure, out)


def recall_by_distance(summary: Mapping[str, Any], out: Path) -> Path | None:
    """Likelihood gain against the number of chunks read since the one asked for; None where there is no such metric."""
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    stages = [stage for stage in STAGES if stage in summary]
    distances: dict[int, set[int]] = {}
    for place, stage in enumerate(stages):
        points = []
        for name in ordered(summary[stage]):
            base, distance = split_name(name)
            if base == "recall_likelihood_gain" and distance is not None and _has(summary[stage], name):
                points.append((distance, summary[stage][name]))
                distances.setdefault(distance, set()).add(summary[stage][name]["n"])
        if not points:
            continue
        shift = (place - (len(stages) - 1) / 2) * 0.08
        colour, mark = STAGE_LOOK[stage]
        panel.errorbar(
            [distance + shift for distance, _ in points],
            [value["mean"] for _, value in points],
            yerr=_error([value for _, value in points]),
            color=colour,
            marker=mark,
            capsize=3,
            label=stage.replace("_", " "),
        )
    if not distances:
        return None
    panel.axhline(0, color=BLACK, linewidth=0.6)
    ticks = sorted(distances)
    panel.set_xticks(ticks, [f"{distance}\nn = {_counts(distances[distance])}" for distance in ticks])
    panel.set_xlabel("chunks read since the one asked for (n: documents)")
    panel.set_ylabel("nats")
    panel.set_title("Recall: likelihood gain by the memory, 95% intervals", fontsize=10)
    panel.legend(fontsize=8)
    return save(figure, out)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, float, float]]:
    """``(stage, step, value)`` wherever a step reports a finite number; GRPO's steps count on after priming's."""
    primed = max((int(row.get("step", 0)) for row in rows if row.get("stage") == "priming"), default=0)
    points = []
    for row in rows:
        stage, value = str(row.get("stage", "")), row.get(key)
        if not isinstance(value, int | float) or not np.isfinite(value):
            continue
        if stage != "priming":
            points.append((stage, float(row.get("step", 0) + primed), float(value)))
        elif key in SUPERVISED:
            points.append((stage, float(row.get("step", 0)), float(value)))
    return points


def by_length(found: Mapping[str, Mapping[int, Mapping[str, Any]]], metric: str, title: str, out: Path) -> Path | None:
    """Score over text length with 95% bands, one line for each kind of answer; what sees no text is a dashed level."""
    lengths = sorted({length for values in found.values() for length in values if length})
    if not lengths:
        return None
    figure, [panel] = grid(1)
    for (kind, values), colour in zip(found.items(), cycle(LINES), strict=False):
        seen = [length for length in sorted(values) if values[length][metric]["mean"] is not None]
        estimates = [values[length][metric] for length in seen]
        if not seen:
            continue
        if seen == [0]:
            panel.axhline(estimates[0]["mean"], color=colour, linestyle="--", label=kind)
            continue
        means = np.array([estimate["mean"] for estimate in estimates])
        down, up = _error(estimates)
        panel.plot(seen, means, "o-", color=colour, label=kind, markersize=4)
        panel.fill_between(seen, means - down, means + up, color=colour, alpha=0.15, linewidth=0)
    panel.set_xscale("log", base=2)
    panel.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=8)
    panel.minorticks_off()
    if panel.get_ylim()[0] >= 0 or metric != "gain":  # a likelihood gain may be a loss
        panel.set_ylim(0, max(0.1, panel.get_ylim()[1]))
    panel.set_xlabel("tokens of text", fontsize=8)
    panel.set_ylabel(BY_LENGTH.get(metric, metric), fontsize=8)
    panel.set_title(title, fontsize=9)
    panel.legend(fontsize=7)
    return save(figure, out)


def _has(values: Mapping[str, Any], name: str) -> bool:
    return name in values and values[name]["mean"] is not None


def _error(values: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Lengths of the error bars, shape (2, values): down and up; 0 where there is no interval."""
    arms = []
    for value in values:
        low, high = value["ci95"]
        mean = value["mean"]
        arms.append((0.0, 0.0) if low is None else (max(mean - low, 0.0), max(high - mean, 0.0)))
    return np.array(arms).T


def _counts(counts: set[int]) -> str:
    return "/".join(map(str, sorted(counts)))


def grid(n: int) -> tuple[Figure, list[Axes]]:
    columns = min(n, 3)
    lines = -(-n // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * lines + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for spare in axes[n:]:
        spare.set_visible(False)
    return figure, list(axes[:n])


def save(figure: Figure, out: Path) -> Path:
    figure.savefig(out, format="png")
    return out
