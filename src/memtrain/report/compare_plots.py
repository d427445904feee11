"""Pictures of a comparison: reward of all its training runs in one panel each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memtrain.report.plots import BLACK, BLUE, GREEN, GREY, ORANGE, grid, save, smooth

PANELS = (
    ("reward", "reward of a trajectory"),
    ("dropped_groups", "dropped groups"),
    ("memory_tokens", "memory length, tokens"),
    ("entropy", "entropy, nats a token"),
)
COLOURS = (BLUE, ORANGE, GREEN, BLACK, GREY, "#CC79A7", "#D55E00", "#56B4E9")


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> Path | None:
    """GRPO steps of several runs (name -> lines of metrics.jsonl), one panel a metric, one line a run."""
    steps = {name: [line for line in lines if line.get("stage") == "grpo"] for name, lines in runs.items()}
    panels = [(key, title) for key, title in PANELS if any(key in line for lines in steps.values() for line in lines)]
    if not panels:
        return None
    figure, axes = grid(len(panels))
    figure.suptitle("Training runs (points: steps; line: moving mean)")
    for panel, (key, title) in zip(axes, panels, strict=True):
        lowest = min(line[key] for lines in steps.values() for line in lines if key in line)
        for place, (name, lines) in enumerate(steps.items()):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                x, y = np.array(points, dtype=float).T
                colour = COLOURS[place % len(COLOURS)]
                panel.plot(x, y, ".", color=colour, alpha=0.35)
                panel.plot(x, smooth(y), color=colour, label=name)
        if lowest >= 0:  # counts and lengths from zero; a reward may be negative
            panel.set_ylim(bottom=0.0)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.legend(fontsize=6)
    return save(figure, out)
