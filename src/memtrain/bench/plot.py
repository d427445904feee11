"""The picture of the table: bars of ratios, a mark where the target is. Drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memtrain.bench.report import Line

BLUE, ORANGE, BLACK, GREY = "#0072B2", "#E69F00", "#000000", "#8C8C8C"
DPI = 150
WIDTH = 42
"""Characters of a label's line."""


def draw(lines: Sequence[Line], out: Path) -> Path | None:
    """Ratios above, shares and growth below; None where there is nothing to draw."""
    ratios = [line for line in lines if line.unit == "x"]
    shares = [line for line in lines if line.unit != "x"]
    panels = [part for part in (ratios, shares) if part]
    if not panels:
        return None
    heights = [0.55 * len(part) + 0.9 for part in panels]
    figure = Figure(figsize=(9.0, sum(heights) + 0.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, part in zip(axes, panels, strict=True):
        if part is ratios:
            _bars(panel, part, [line.value for line in part], [line.target for line in part])
            panel.errorbar(
                [line.value for line in part],
                range(len(part)),
                xerr=[[line.value - line.low for line in part], [line.high - line.value for line in part]],
                fmt="none",
                color=BLACK,
                capsize=3,
                linewidth=1,
            )
            panel.set_xlabel("times as good as the peer (bar: median, whisker: range over rounds, mark: target)")
        else:
            _bars(panel, part, [line.value / line.target for line in part], [1.0] * len(part))
            panel.set_xlabel("by its target (≥: the bar should pass the mark; ≤: it should not)")
    figure.savefig(out, format="png")
    return out


def _bars(panel: Axes, lines: Sequence[Line], values: Sequence[float], targets: Sequence[float]) -> None:
    places = range(len(lines))
    panel.barh(places, values, color=[BLUE if line.met else ORANGE for line in lines], height=0.62)
    for place, target in zip(places, targets, strict=True):
        panel.plot([target, target], [place - 0.42, place + 0.42], color=BLACK, linewidth=2.5)
    longest = max(*values, *targets, *(line.high if line.unit == "x" else 0 for line in lines))
    panel.set_xlim(0, longest * 1.32)
    for place, (line, value, target) in enumerate(zip(lines, values, targets, strict=True)):
        edge = max(value, target, line.high if line.unit == "x" else 0)
        panel.text(edge + longest * 0.015, place, _caption(line), va="center", fontsize=8)
    panel.set_yticks(places, [_label(line) for line in lines], fontsize=8)
    panel.invert_yaxis()
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.axvline(0, color=GREY, linewidth=0.8)


def _caption(line: Line) -> str:
    if line.unit == "%":
        return f"{line.value:.0%} (target ≥ {line.target:.0%})"
    return f"{line.value:.2f}x (target {'≤' if line.unit == '<=' else '≥'} {line.target:g}x)"


def _label(line: Line) -> str:
    text = line.work if line.against == "-" else f"{line.work}\nagainst {line.against}"
    if line.against == "-" and len(text) > WIDTH:
        cut = text.rfind(" ", 0, WIDTH)
        text = f"{text[:cut]}\n{text[cut + 1 :]}"
    return text
