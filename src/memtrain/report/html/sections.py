"""The sections of the page, each nothing where a run has nothing for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memtrain.evaluation.metrics import METRICS, ordered, split_name
from memtrain.report.html import charts, tables
from memtrain.report.html.curves import HELD_OUT, MOST_POINTS, SECTIONS, held_out, panels, thinned
from memtrain.report.html.load import Estimates, RunData
from memtrain.report.html.markup import Child, Html, join, tag
from memtrain.report.summary import HEADLINES

TILES = (*HEADLINES, "recall_f1", "reconstruction_likelihood_gain", "memory_tokens", "truncated")
"""Measures at the head of a report about one run."""
STAGE_TITLES = {"before": "before", "after_priming": "after priming", "after": "after"}


def overview(runs: Sequence[RunData]) -> Html:
    """Facts, measures and notes of one run; of several a table."""
    notes = [(run, note) for run in runs for note in run.notes]
    told = [tag("li", f"{run.name}: " if len(runs) > 1 else "", note) for run, note in notes]
    warning = tag("ul", told, class_="notes", aria_label="what is missing") if told else None
    if len(runs) == 1:
        run = runs[0]
        title = tag("h1", run.name, tag("span", "finished" if run.summary else "not finished", class_="state"))
        return join([title, warning, _tiles(run), tables.fact_list(tables.facts(run))])
    pairs = [dict(tables.facts(run)) for run in runs]
    keys = list(dict.fromkeys(key for found in pairs for key in found))
    head: list[Child] = ["", *(tag("span", run.name, class_=f"run s{place % 8}") for place, run in enumerate(runs))]
    rows: list[list[Child]] = [[key, *(found.get(key, tables.NOTHING) for found in pairs)] for key in keys]
    if not runs:
        return tag("h1", "Comparison")
    return join([tag("h1", f"{len(runs)} runs"), warning, tables.table(head, rows, "runs", numeric=False)])


def _tiles(run: RunData) -> Html | None:
    tiles = []
    for name in TILES:
        gap, stages = run.difference.get(name), list(run.stages)
        if gap is None or gap["mean"] is None or not stages:
            continue
        first, last = run.stages[stages[0]].get(name), run.stages[stages[-1]].get(name)
        if not first or not last or first["mean"] is None or last["mean"] is None:
            continue
        metric = METRICS[name]
        title = metric.title[0].upper() + metric.title[1:]
        change = [tables.signed_cell(gap), " ", tables.verdict(name, gap)]
        tiles.append(
            tag(
                "div",
                tag("h3", title, " ", tag("span", metric.unit, class_="unit")),
                tag("p", tables.minus(first["mean"]), " → ", tag("b", tables.minus(last["mean"])), class_="big"),
                charts.glyph(gap, metric.better),
                tag("p", change, class_="change"),
                class_="tile",
            )
        )
    counts = "/".join(map(str, sorted({gap["n"] for name in TILES if (gap := run.difference.get(name))})))
    said = (
        f"Means of first and last evaluation; below, their paired difference and its 95% interval; {counts} documents."
    )
    return join([tag("div", tiles, class_="tiles"), tag("p", said, class_="fine")]) if tiles else None


def results(runs: Sequence[RunData]) -> Html | None:
    """Before and after: tables, and recall by distance."""

    def main(name: str) -> bool:
        return split_name(name)[1] is None and not name.startswith(("closed_book", "full_context"))

    def rest(name: str) -> bool:
        return not main(name)

    explained = tag(
        "p",
        "Held-out documents. Means with 95% bootstrap intervals over documents; differences are paired by document. "
        "Better or worse is said only where the whole interval lies on one side of zero.",
        class_="lead",
    )
    if len(runs) == 1:
        shown, more = tables.before_after(runs[0], main), tables.before_after(runs[0], rest)
    else:
        shown, more = tables.side_by_side(runs, main), tables.side_by_side(runs, rest)
    if shown is None and more is None:
        return None
    names = ordered({name for run in runs for name in run.difference if main(name)})
    between = tables.between_runs(runs, names)
    folded = tag("details", tag("summary", "By distance, and controls without memory"), more) if more else None
    heading = tag("h3", "Between runs") if between else None
    return join([explained, shown, _by_distance(runs), heading, between, folded])


def _by_distance(runs: Sequence[RunData]) -> Html | None:
    """Recall over the number of chunks read since."""

    def points(found: Estimates, metric: str) -> list[tuple[int, Any]]:
        parts = [(split_name(name), value) for name, value in found.items()]
        chosen = [(at, v) for (base, at), v in parts if base == metric and at is not None and v["mean"] is not None]
        return sorted(chosen, key=lambda point: point[0])

    figures = []
    for metric in ("recall_likelihood_gain", "recall_f1"):
        if len(runs) == 1:
            looks = {"before": "s4", "after_priming": "s1", "after": "s0"}
            lines = [
                (STAGE_TITLES[stage], looks[stage], points(found, metric)) for stage, found in runs[0].stages.items()
            ]
        else:
            ends = [(place, run) for place, run in enumerate(runs) if run.stages]
            lines = [(run.name, f"s{place % 8}", points(list(run.stages.values())[-1], metric)) for place, run in ends]
        lines = [line for line in lines if line[2]]
        if lines:
            title = METRICS[metric].title[0].upper() + METRICS[metric].title[1:]
            below = "chunks read since the one asked for"
            figures.append(charts.interval_chart(f"distance-{metric}", title, METRICS[metric].unit, below, lines))
    for metric in HELD_OUT:
        curves = [(run.name, f"s{place % 8}", held_out(run, metric)) for place, run in enumerate(runs)]
        curves = [line for line in curves if len(line[2]) > 2]
        if curves:
            title = f"While training: {METRICS[metric].title}"
            figures.append(charts.interval_chart(f"while-{metric}", title, METRICS[metric].unit, "GRPO step", curves))
    return tag("div", figures, class_="charts") if figures else None


def curves(runs: Sequence[RunData]) -> tuple[Html | None, dict[str, Any]]:
    """All charts over the steps, and what the script needs to read them."""
    found = panels(runs)
    if not found:
        return None, {}
    names, data, blocks = [run.name for run in runs], {}, []
    for section in SECTIONS:
        figures = []
        for panel in found:
            if panel.section == section:
                figure, data[panel.key] = charts.line_chart(panel, names)
                figures.append(figure)
        if figures:
            blocks.append(join([tag("h3", section), tag("div", figures, class_="charts")]))
    stages = {line.stage for panel in found for line in panel.series}
    entries = [(name, f"s{place % 8}", None) for place, name in enumerate(names)]
    if len(runs) == 1:
        entries = [(stage, colour, None) for stage, colour in (("priming", "s1"), ("GRPO", "s0")) if stage in stages]
    said = "Points are steps, lines a moving mean over a tenth of them. GRPO's steps count on after priming's."
    if thinned(runs):
        said += f" Of runs of more than {MOST_POINTS:,} steps every n-th is shown."
    if not any(panel.key == "kl" for panel in found):
        said += " KL to the start model was not measured (train.kl_coef is 0)."
    said += " Arrow keys move through a chart that has the focus; all numbers are under Steps."
    return join([tag("p", said, class_="lead"), charts.legend(entries), blocks]), data


def viewer(data: dict[str, Any]) -> Html | None:
    """Legend and place of the memory viewer, which the script fills."""
    if not any(run["groups"] for run in data["runs"]):
        return None
    said = (
        "A text goes by in chunks, and only the memory remains, which the model writes anew after each. Every memory "
        "is shown against the one before it."
    )
    samples: list[Child] = [
        tag("li", tag("ins", "added"), " since the last memory"),
        tag("li", "kept"),
        tag("li", tag("del", "lost")),
        tag("li", tag("mark", "hidden entity", class_="h")),
        tag("li", tag("mark", "asked for", class_="p", data_n="2"), " by probe 2"),
        tag("li", tag("span", "entity", class_="e kept"), " in the memory"),
        tag("li", tag("span", "entity", class_="e"), " not in it"),
    ]
    script = tag("noscript", tag("p", "The memory viewer needs JavaScript, which is part of this file."))
    return join(
        [tag("p", said, class_="lead"), tag("ul", samples, class_="legend marks"), tag("div", script, id="viewer")]
    )


def settings(runs: Sequence[RunData]) -> Html | None:
    """In what the recipes differ from the defaults, or from each other."""
    defaults = tables.settings_table(runs, among_runs=False)
    if len(runs) == 1:
        said = tag("p", "Settings that differ from the defaults.", class_="lead")
        return join([said, defaults]) if defaults else None
    between = tables.settings_table(runs, among_runs=True)
    words = "Settings that differ between the runs." if between else "All runs have the same settings."
    said = tag("p", words, class_="lead")
    folded = tag("details", tag("summary", "Settings that differ from the defaults"), defaults) if defaults else None
    return join([said, between, folded]) if folded or between else None


def steps(runs: Sequence[RunData]) -> list[Html]:
    """The curves as numbers."""
    return [
        tag("details", tag("summary", f"{run.name}: {len(run.metrics)} steps as numbers"), found)
        for run in runs
        if (found := tables.steps_table(run)) is not None
    ]
