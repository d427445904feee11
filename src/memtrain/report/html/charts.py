"""Charts as inline SVG: no library in the page, colours from its style sheet, a description for those who do not see.

Lines differ by dashes, marks by shape, so that nothing hangs on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memtrain.evaluation.statistics import Estimate
from memtrain.report.console import number
from memtrain.report.html.curves import Panel, Series
from memtrain.report.html.markup import Html, tag
from memtrain.report.plots import smooth

WIDTH, HEIGHT = 380, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 24
GLYPH_WIDTH, GLYPH_HEIGHT = 132, 18


def ticks(low: float, high: float, n: int = 4) -> list[float]:
    """About ``n`` round numbers between two bounds."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / n
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Domain of an axis: with room at both ends; from zero where everything is near it or above."""
    low, high = min(values), max(values)
    if low == high:
        return (low - 0.5, high + 0.5) if low < 0 else (0.0, (high or 0.8) * 1.25)
    pad = (high - low) * 0.06
    floor = 0.0 if 0 <= low <= 0.6 * high else low - pad
    return floor, high + pad


class Scale:
    """Data to places in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x0, self.x1 = x if x[0] < x[1] else (x[0] - 0.5, x[0] + 0.5)
        self.y0, self.y1 = y

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM), 1)


def look(series: Series, several: bool) -> str:
    """Class of a line: its run where there are several, else its stage."""
    return f"s{series.run % 8}" if several else ("s1" if series.stage == "priming" else "s0")


def line_chart(panel: Panel, names: Sequence[str]) -> tuple[Html, dict[str, Any]]:
    """The figure, and what the pointer needs to read it: domains and points."""
    several = len(names) > 1
    xs = [x for line in panel.series for x, _ in line.points]
    ys = [y for line in panel.series for _, y in line.points]
    scale = Scale((min(xs), max(xs)), bounds(ys))
    marks: list[Html] = axes(scale, [x for x in ticks(scale.x0, scale.x1, 5) if float(x).is_integer()])
    for line in panel.series:
        colour = look(line, several)
        dots = "".join(f"M{scale.x(x):g} {scale.y(y):g}h0" for x, y in line.points)
        means = zip(line.points, smooth([y for _, y in line.points]), strict=True)
        path = "L".join(f"{scale.x(x):g} {scale.y(float(mean)):g}" for (x, _), mean in means)
        marks.append(tag("path", class_=f"dots {colour}", d=dots))
        marks.append(tag("path", class_=f"line {colour}", d=f"M{path}"))
    marks.append(tag("line", class_="cursor", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, hidden=True))
    name = f"chart-{panel.key}"
    title = f"{panel.title}{f', {panel.unit}' if panel.unit else ''}"
    svg = tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", describe(panel, names), id=f"{name}-desc"),
        marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )
    last = panel.series[-1].points[-1][1]
    newest = None if several else tag("span", number(last).replace("-", "−"), class_="newest")
    head = tag(
        "figcaption", tag("b", panel.title[0].upper() + panel.title[1:]), newest, tag("span", panel.unit, class_="unit")
    )
    figure = tag("figure", head, svg, class_="chart", id=name, tabindex=0, data_chart=panel.key)
    data = {
        "x": [scale.x0, scale.x1],
        "y": [scale.y0, scale.y1],
        "s": [
            {
                "n": names[line.run] if several else line.stage,
                "c": look(line, several),
                "x": [x for x, _ in line.points],
                "y": [float(f"{y:.4g}") for _, y in line.points],
            }
            for line in panel.series
        ],
    }
    return figure, data


def axes(scale: Scale, at: Sequence[float], labels: Sequence[str] | None = None) -> list[Html]:
    """Grid lines with their values, and the places named below."""
    marks = []
    for value in ticks(scale.y0, scale.y1):
        y = scale.y(value)
        kind = "grid zero" if value == 0 and scale.y0 < 0 else "grid"
        marks.append(tag("line", class_=kind, x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        marks.append(
            tag("text", short_tick(value).replace("-", "−"), class_="tick", x=LEFT - 6, y=y + 3.5, text_anchor="end")
        )
    for place, x in enumerate(at):
        shown = labels[place] if labels else f"{x:,.0f}"
        marks.append(tag("text", shown, class_="tick", x=scale.x(x), y=HEIGHT - 8, text_anchor="middle"))
    return marks


def short_tick(value: float) -> str:
    """A tick's value in few signs."""
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value / 1000:g}k" if size >= 10_000 else f"{round(value, 8):g}"


def describe(panel: Panel, names: Sequence[str]) -> str:
    """The chart in words."""
    parts = []
    for line in panel.series:
        values = [y for _, y in line.points]
        who = names[line.run] + ", " if len(names) > 1 else ""
        span = f"steps {line.points[0][0]} to {line.points[-1][0]}"
        parts.append(
            f"{who}{line.stage}, {span}: first {number(values[0])}, last {number(values[-1])}, lowest "
            f"{number(min(values))}, highest {number(max(values))}."
        )
    return " ".join(parts)


def interval_chart(
    name: str, title: str, unit: str, below: str, lines: Sequence[tuple[str, str, Sequence[tuple[int, Estimate]]]]
) -> Html:
    """Means with 95% intervals over a few places, a line for each ``(label, class, [(place, estimate)])``."""
    places = sorted({x for _, _, points in lines for x, _ in points})
    known = [value for _, _, points in lines for _, value in points]
    reach = [bound for value in known for bound in (value["mean"], *value["ci95"]) if bound is not None]
    low, high = bounds(reach)
    margin = (places[-1] - places[0]) * 0.06 or 0.5
    scale = Scale((places[0] - margin, places[-1] + margin), (min(low, 0.0), high))
    shown = places if len(places) <= 12 else [x for x in ticks(scale.x0, scale.x1, 6) if x in places]
    marks = axes(scale, shown)
    for order, (label, colour, points) in enumerate(lines):
        shift = (order - (len(lines) - 1) / 2) * 7
        path = "L".join(f"{scale.x(x) + shift:g} {scale.y(value['mean']):g}" for x, value in points)
        marks.append(tag("path", class_=f"line {colour}", d=f"M{path}"))
        for x, value in points:
            middle, y = scale.x(x) + shift, scale.y(value["mean"])
            arm = None
            if value["ci95"][0] is not None:
                top, bottom = scale.y(value["ci95"][1]), scale.y(value["ci95"][0])
                d = f"M{middle:g} {top:g}V{bottom:g}M{middle - 3:g} {top:g}h6M{middle - 3:g} {bottom:g}h6"
                arm = tag("path", class_=f"arm {colour}", d=d)
            tip = tag("title", f"{label}, {below} {x}: {number(value['mean'])}, n = {value['n']}")
            marks.append(tag("g", tip, arm, shape(order, middle, y, colour)))
    svg = tag("svg", tag("title", title), marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    head = tag("figcaption", tag("b", title), tag("span", unit, class_="unit"))
    several = len(lines) > 1
    key = legend([(line[0], line[1], place) for place, line in enumerate(lines)]) if several else None
    return tag("figure", head, svg, tag("p", below, class_="axis"), key, class_="chart", id=name)


def shape(kind: int, x: float, y: float, colour: str) -> Html:
    """Circle, square, triangle, diamond: told apart without colour."""
    paths = (
        f"M{x - 3.5:g} {y:g}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
        f"M{x - 3:g} {y - 3:g}h6v6h-6z",
        f"M{x:g} {y - 4:g}l4 7h-8z",
        f"M{x:g} {y - 4:g}l4 4l-4 4l-4 -4z",
    )
    return tag("path", class_=f"mark {colour}", d=paths[kind % 4])


def legend(entries: Sequence[tuple[str, str, int | None]]) -> Html:
    """Lines with their names; ``(name, class, shape or None)``."""
    items = []
    for label, colour, kind in entries:
        mark = None if kind is None else shape(kind, 14, 6, colour)
        sample = tag("svg", tag("path", class_=f"line {colour}", d="M1 6H27"), mark, viewBox="0 0 28 12", class_="key")
        items.append(tag("li", sample, label))
    return tag("ul", items, class_="legend")


def glyph(value: Estimate, better: int) -> Html:
    """A difference as a dot with its interval beside zero; ``better``: which side is the good one (0: neither)."""
    low, high = value["ci95"]
    known = [0.0, *(bound for bound in (value["mean"], low, high) if bound is not None)]
    reach = max(abs(bound) for bound in known) * 1.08 or 1.0

    def x(place: float) -> float:
        return round(GLYPH_WIDTH / 2 + place / reach * (GLYPH_WIDTH / 2 - 5), 1)

    middle = GLYPH_HEIGHT / 2
    arm = tag("path", class_="arm", d=f"M{x(low):g} {middle:g}H{x(high):g}") if low is not None else None
    sure = low is not None and (low > 0 or high < 0) and better != 0
    kind = ("good" if (value["mean"] > 0) == (better > 0) else "bad") if sure else "open"
    dot = tag("circle", cx=x(value["mean"]), cy=middle, r=4)
    zero = tag("line", class_="zero", x1=x(0), x2=x(0), y1=1, y2=GLYPH_HEIGHT - 1)
    box = f"0 0 {GLYPH_WIDTH} {GLYPH_HEIGHT}"
    return tag("svg", zero, arm, dot, viewBox=box, class_=f"glyph {kind}", aria_hidden="true")
