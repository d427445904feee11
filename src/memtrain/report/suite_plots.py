"""Score over text length for the label-free suites: a panel a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memtrain.report.plots import BLACK, BLUE, GREEN, GREY, ORANGE, _error, grid, save

LOOKS = ((BLUE, "o"), (GREEN, "s"), (ORANGE, "^"), (GREY, "D"), (BLACK, "v"))
"""Colour and mark by the order of kinds."""
SIDE = 0.08
"""Octaves between the bars of a panel with one length."""


def by_task(
    found: Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]], kinds: tuple[str, ...], metric: str, out: Path
) -> Path | None:
    """One panel a task: means over tokens of text, a line a kind; what sees no text is a dashed level.

    ``found``: ``{task: {kind: {length: {metric: estimate}}}}``. 95% intervals are bands, or bars where there is one
    length. None where no kind has seen a text.
    """
    lengths = sorted({length for task in found.values() for kind in task.values() for length in kind if length})
    if not lengths:
        return None
    figure, panels = grid(len(found))
    for panel, (task, by_kind) in zip(panels, found.items(), strict=True):
        for place, (kind, (colour, mark)) in enumerate(zip(kinds, LOOKS, strict=True)):
            values = {length: value[metric] for length, value in sorted(by_kind.get(kind, {}).items())}
            if not values:
                continue
            if set(values) == {0}:
                panel.axhline(values[0]["mean"], color=colour, linestyle="--", linewidth=1, label=kind)
                continue
            means = np.array([value["mean"] for value in values.values()])
            down, up = _error(list(values.values()))
            looks: dict[str, Any] = {"marker": mark, "color": colour, "label": kind, "markersize": 4, "linewidth": 1.2}
            if len(values) == 1:  # no band without a second length: bars, side by side
                panel.errorbar([next(iter(values)) * 2 ** (SIDE * (place - 2))], means, [down, up], **looks)
                continue
            panel.plot(list(values), means, **looks)
            panel.fill_between(list(values), means - down, means + up, color=colour, alpha=0.12, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xlim(lengths[0] * 2**-0.4, lengths[-1] * 2**0.4)
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=7)
        panel.minorticks_off()
        panel.set_ylim(-0.03, 1.03)
        panel.set_title(task, fontsize=9)
        panel.set_xlabel("tokens of text", fontsize=8)
        panel.set_ylabel("answers found", fontsize=8)
    # One legend for all panels: every kind that any of them shows.
    shown = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    order = [kind for kind in kinds if kind in shown]
    figure.legend([shown[kind] for kind in order], order, loc="outside lower center", ncols=len(order), fontsize=7)
    return save(figure, out)
