"""Tables of the report: facts, before and after, settings, steps, comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from memtrain.evaluation.metrics import METRICS, ordered, split_name
from memtrain.evaluation.statistics import Estimate, paired_difference
from memtrain.recipe import Recipe
from memtrain.report.console import duration, number
from memtrain.report.html.charts import glyph
from memtrain.report.html.curves import MOST_POINTS, SECTIONS, TITLES
from memtrain.report.html.load import RunData
from memtrain.report.html.markup import Child, Html, tag
from memtrain.report.summary import short

NOTHING = "–"


def table(head: Sequence[Child], rows: Sequence[Sequence[Child]], label: str, numeric: bool = True) -> Html:
    """A table that scrolls by itself where it is wider than the page; the first cell of a row names it."""
    first = tag("tr", [tag("th", cell, scope="col") for cell in head])
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    whole = tag("table", tag("thead", first), tag("tbody", body), class_="numeric" if numeric else None)
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=label)


def facts(run: RunData) -> list[tuple[str, str]]:
    """What the run was: model, data, seed, machine, versions, time, how far it came."""
    machine, versions = run.fact("machine"), run.fact("versions")
    machine = machine if isinstance(machine, dict) else {}
    versions = versions if isinstance(versions, dict) else {}
    seconds = run.summary.get("seconds") if isinstance(run.summary.get("seconds"), dict) else run.seconds
    times = {stage: value for stage, value in (seconds or {}).items() if isinstance(value, int | float)}
    gib = f"{machine['memory_gib']} GiB" if "memory_gib" in machine else None
    cores = f"{machine['cores']} cores" if "cores" in machine else None
    hardware = [machine.get("gpu"), machine.get("processor"), cores, gib, machine.get("system")]
    found: dict[str, Any] = {
        "model": run.fact("model", "model", "name"),
        "corpus": run.fact("corpus", "corpus", "source") if not run.summary.get("questions") else None,
        "questions": run.summary.get("questions"),
        "recipe": " ".join(map(str, filter(None, [run.fact("recipe", "name"), run.summary.get("fingerprint")]))),
        "seed": run.fact("seed"),
        "engine": run.recipe.get("engine"),
        "workers": run.summary.get("workers"),
        "steps": progress(run),
        "time": ", ".join(f"{stage.replace('_', ' ')} {duration(value)}" for stage, value in times.items()),
        "time in all": duration(sum(times.values())) if len(times) > 1 else None,
        "tokens sampled": run.summary.get("tokens_sampled"),
        "machine": ", ".join(str(part) for part in hardware if part),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return [(name, number(value)) for name, value in found.items() if value not in (None, "")]


def progress(run: RunData) -> str:
    """Steps done, of how many where the recipe says so."""
    parts = []
    for stage, section in (("priming", "priming"), ("GRPO", "train")):
        rows = [row for row in run.metrics if (row["stage"] == "priming") == (stage == "priming")]
        done = max((row["step"] for row in rows), default=0)
        settings = run.recipe.get(section)
        total = settings.get("steps") if isinstance(settings, dict) else None
        if done or total:
            parts.append(f"{stage} {done}{f' of {total}' if total is not None and total != done else ''}")
    return ", ".join(parts)


def fact_list(pairs: Sequence[tuple[str, str]]) -> Html:
    """Facts of one run."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_="facts")


def estimate_cell(value: Estimate | None) -> Child:
    """Mean with its interval; a dash where there is nothing."""
    if value is None or value["mean"] is None:
        return NOTHING
    low, high = value["ci95"]
    interval = tag("small", f"[{minus(low)}, {minus(high)}]") if low is not None else None
    return [tag("b", minus(value["mean"])), " ", interval]


def signed_cell(value: Estimate | None) -> Child:
    """A difference with its interval."""
    if value is None or value["mean"] is None:
        return NOTHING
    low, high = value["ci95"]
    interval = tag("small", f"[{plus(low)}, {plus(high)}]") if low is not None else None
    return [tag("b", plus(value["mean"])), " ", interval]


def minus(value: float) -> str:
    """A mean, its minus as wide as a plus."""
    return short(value).replace("-", "−")


def plus(value: float) -> str:
    """With its sign."""
    return ("+" if value > 0 else "") + minus(value)


def verdict(name: str, value: Estimate | None) -> Html:
    """``▲ better`` where the whole interval lies on the good side; words, not colour alone."""
    metric = METRICS[split_name(name)[0]]
    if value is None or value["mean"] is None or value["ci95"][0] is None:
        return tag("span", NOTHING, class_="open")
    low, high = value["ci95"]
    if low <= 0 <= high:
        return tag("span", "unsettled", class_="open")
    if not metric.better:
        return tag("span", "higher" if low > 0 else "lower", class_="open")
    good = (low > 0) == (metric.better > 0)
    return tag("span", "▲ better" if good else "▼ worse", class_="good" if good else "bad")


def metric_title(name: str) -> list[Child]:
    """Title and unit of a metric, the distance for those that have one."""
    base, distance = split_name(name)
    where = f", {distance} chunks later" if distance is not None else ""
    unit = tag("span", METRICS[base].unit, class_="unit")
    return [tag("span", METRICS[base].title + where, " ", unit, class_="name")]


def before_after(run: RunData, chosen: Callable[[str], bool]) -> Html | None:
    """Every evaluation of one run and the paired difference of last and first."""
    stages = list(run.stages)
    names = [name for name in ordered({n for stage in stages for n in run.stages[stage]}) if chosen(name)]
    if not names:
        return None
    parts = [stage for stage in run.by_stage if len(run.by_stage) > 1]
    head: list[Child] = ["metric", "n", *(stage.replace("_", " ") for stage in stages)]
    head += [f"{part.replace('grpo', 'GRPO')} gave" for part in parts]
    head += ["last − first", "", ""] if run.difference else []
    rows: list[list[Child]] = []
    for name in names:
        found = [run.stages[stage].get(name) for stage in stages]
        counts = sorted({value["n"] for value in found if value is not None})
        row: list[Child] = [metric_title(name), "/".join(map(str, counts)), *map(estimate_cell, found)]
        row += [signed_cell(run.by_stage[part].get(name)) for part in parts]
        gap = run.difference.get(name)
        if run.difference:
            drawn = glyph(gap, METRICS[split_name(name)[0]].better) if gap and gap["mean"] is not None else NOTHING
            row += [signed_cell(gap), drawn, verdict(name, gap)]
        rows.append(row)
    return table(head, rows, f"before and after, {run.name}")


def side_by_side(runs: Sequence[RunData], chosen: Callable[[str], bool]) -> Html | None:
    """Before, after and paired difference of several runs."""
    names = ordered({name for run in runs for stage in run.stages.values() for name in stage})
    head: list[Child] = ["metric"]
    for place, run in enumerate(runs):
        label = tag("span", run.name, class_=f"run s{place % 8}")
        head += [[label, " first → last"], [label, " difference"]]
    rows = []
    for name in filter(chosen, names):
        row: list[Child] = [metric_title(name)]
        for run in runs:
            ends = [run.stages[stage].get(name) for stage in (list(run.stages)[:1] + list(run.stages)[-1:])]
            means = [minus(end["mean"]) if end and end["mean"] is not None else NOTHING for end in ends]
            gap = run.difference.get(name)
            row += [" → ".join(means), [signed_cell(gap), " ", verdict(name, gap)]]
        rows.append(row)
    return table(head, rows, "before and after of all runs") if rows else None


def between_runs(runs: Sequence[RunData], names: Sequence[str]) -> Html | None:
    """Last evaluations of each further run minus the first run's, paired where they read the same documents."""
    if len(runs) < 2 or "after" not in runs[0].evaluations:
        return None
    first = runs[0].evaluations["after"]
    golds = _golds(first.records)
    others = [run for run in runs[1:] if "after" in run.evaluations]
    others = [run for run in others if golds and _golds(run.evaluations["after"].records) == golds]
    if not others:
        return None
    rows: list[list[Child]] = []
    for name in names:
        row: list[Child] = [metric_title(name)]
        for run in others:
            try:
                gap = paired_difference(first.records, run.evaluations["after"].records, name)
            except (TypeError, ValueError):
                gap = None
            gap = gap if gap and gap["n"] else None
            row += [signed_cell(gap), [glyph(gap, METRICS[name].better) if gap else NOTHING, verdict(name, gap)]]
        rows.append(row)
    head: list[Child] = ["last evaluation, paired by document"]
    for run in others:
        head += [f"{run.name} − {runs[0].name}", ""]
    return table(head, rows, "differences between runs")


def _golds(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Hidden entity of each document: ids alone are the same in every corpus."""
    return {row["document"]: row.get("gold") for row in records if row.get("kind") == "reading"}


def flat_settings(data: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"train.lr": "5e-05"}``."""
    found: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            found |= flat_settings(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value, ensure_ascii=False)
    return found


def settings_table(runs: Sequence[RunData], among_runs: bool) -> Html | None:
    """Settings that differ from the defaults, or between the runs."""
    defaults = flat_settings(Recipe().model_dump(mode="json"))
    known = [(run, flat_settings(run.recipe)) for run in runs if run.recipe]
    if not known or (among_runs and len(known) < 2):
        return None
    keys = [*defaults, *dict.fromkeys(key for _, found in known for key in found if key not in defaults)]
    rows: list[list[Child]] = []
    for key in keys:
        # A setting that is younger than a run had its default then.
        values = [found.get(key, defaults.get(key, NOTHING)) for _, found in known]
        differs = len(set(values)) > 1 if among_runs else any(value != defaults.get(key) for value in values)
        if differs and key != "name":
            rows.append([tag("code", key), defaults.get(key, NOTHING), *values])
    if not rows:
        return None
    head = ["setting", "default", *(run.name for run, _ in known)]
    return table(head, rows, "settings", numeric=False)


def steps_table(run: RunData) -> Html | None:
    """Every step of a run as numbers: the curves for those who want or need them so."""
    keys = [key for keys in SECTIONS.values() for key in keys if any(key in row for row in run.metrics)]
    if not keys:
        return None
    every = -(-len(run.metrics) // MOST_POINTS)
    rows = [
        [f"{row['stage']} {row['step']}", *(number(row[key]) if key in row else "" for key in keys)]
        for row in run.metrics[::every]
    ]
    return table(["step", *(TITLES[key][0] for key in keys)], rows, f"steps of {run.name}")
