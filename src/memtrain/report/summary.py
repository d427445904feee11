"""``summary.json``: what a run gave, stage by stage, with the machine and versions it was measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memtrain.errors import UserError
from memtrain.evaluation.metrics import METRICS, ordered, split_name
from memtrain.evaluation.proxy import EvalResult
from memtrain.evaluation.statistics import Estimate
from memtrain.recipe import Recipe

FILE = "summary.json"
STAGES = ("before", "after_priming", "after")
"""Evaluations of a run in the order of time; ``after_priming`` only where priming ran."""
PACKAGES = ("memtrain", "torch", "transformers", "numpy", "pyarrow")
HEADLINES = ("recall_likelihood_gain", "entities_kept")
"""What the demo is judged by."""


def summarise(
    results: Mapping[str, EvalResult],
    recipe: Recipe,
    seconds: Mapping[str, float],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary as plain data.

    ``results``: evaluations under the names of :data:`STAGES`; those that are missing are left out. ``seconds``: wall
    time of each stage. ``difference`` is after - before and ``difference_by_stage`` what each stage gave
    (``priming``, ``grpo``), paired by document; ``better`` and ``worse`` list the metrics whose interval of
    ``difference`` lies wholly on one side of zero.
    """
    data: dict[str, Any] = {
        "recipe": recipe.name,
        "fingerprint": recipe.fingerprint(),
        "seed": recipe.seed,
        "model": recipe.model.name,
        "corpus": recipe.corpus.source,
    }
    data |= {stage: results[stage].summary() for stage in STAGES if stage in results}
    if "before" in results and "after" in results:
        data["difference"] = results["after"].difference(results["before"])
        data["difference_by_stage"] = _by_stage(results)
        data |= verdict(data["difference"])
    data["documents"] = {stage: result.notes for stage, result in results.items()}
    data["seconds"] = {stage: round(value, 1) for stage, value in seconds.items()}
    data["machine"], data["versions"] = machine(), versions()
    return data | dict(extra or {})


def _by_stage(results: Mapping[str, EvalResult]) -> dict[str, dict[str, Estimate]]:
    """Each stage that ran against the evaluation just before it: ``priming``, ``grpo``, or one of them."""
    before, primed, after = results["before"], results.get("after_priming"), results["after"]
    found = {}
    if primed is not None:
        found["priming"] = primed.difference(before)
    start = before if primed is None else primed
    if after is not start:  # the very same result where there was no GRPO
        found["grpo"] = after.difference(start)
    return found


def verdict(difference: Mapping[str, Estimate]) -> dict[str, list[str]]:
    """Metrics that have a better direction and whose whole interval is above or below zero in that direction."""
    found: dict[str, list[str]] = {"better": [], "worse": []}
    for name, value in difference.items():
        metric = METRICS.get(split_name(name)[0])
        low, high = value["ci95"]
        if metric is None or not metric.better or low is None:
            continue
        if low > 0 or high < 0:
            found["better" if (low > 0) == (metric.better > 0) else "worse"].append(name)
    return found


def write_summary(folder: Path, data: Mapping[str, Any]) -> Path:
    """Write ``summary.json`` into the run's folder, whole or not at all, and return its path."""
    path = folder / FILE
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    return path


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_summary(folder: Path) -> dict[str, Any]:
    """Read it back. Raises UserError where the run has none or the file is broken."""
    path = folder / FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {FILE}: the run is not finished; go on with --resume") from None
    except ValueError:
        raise UserError(f"{path} is not valid JSON; remove it and run memtrain eval on the run") from None


def table(data: Mapping[str, Any], distances: bool = False) -> list[list[str]]:
    """Rows for a person: metric, unit, every stage, differences; means with their 95% intervals; first row is the head.

    ``distances``: recall metrics by distance too.
    """
    stages = [stage for stage in STAGES if stage in data]
    by_stage = data.get("difference_by_stage", {})
    columns: list[tuple[str, Mapping[str, Estimate]]] = [(stage.replace("_", " "), data[stage]) for stage in stages]
    columns += [(f"{stage} gave", by_stage[stage]) for stage in by_stage if len(by_stage) > 1]
    if "difference" in data:
        columns.append(("after - before", data["difference"]))
    names = ordered({name for stage in stages for name in data[stage]})
    rows = [["metric", "unit", "n", *(title for title, _ in columns)]]
    for name in names:
        base, distance = split_name(name)
        if distance is not None and not distances:
            continue
        title = METRICS[base].title + (f", {distance} chunks later" if distance is not None else "")
        counts = {values[name]["n"] for _, values in columns if name in values}
        cells = [cell(values.get(name)) for _, values in columns]
        rows.append([title, METRICS[base].unit, "/".join(map(str, sorted(counts))), *cells])
    return rows


def cell(value: Estimate | None) -> str:
    """``0.53 [0.41, 0.64]``; a dash where there is nothing."""
    if value is None or value["mean"] is None:
        return "-"
    low, high = value["ci95"]
    return short(value["mean"]) + (f" [{short(low)}, {short(high)}]" if low is not None else "")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the head, as a Markdown table without a line break at its end."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def short(value: float) -> str:
    """Two decimals, or three where the number is small; large ones without any."""
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def headline(data: Mapping[str, Any]) -> str:
    """One sentence for each headline metric: before, after, paired difference, n."""
    sentences = []
    for name in HEADLINES:
        if name not in data.get("difference", {}):
            continue
        gap = data["difference"][name]
        low = gap["ci95"][0]
        says = "no interval" if low is None else "better" if low > 0 else "worse" if gap["ci95"][1] < 0 else "unsettled"
        sentences.append(
            f"{METRICS[name].title}: {cell(data['before'].get(name))} before, {cell(data['after'].get(name))} after, "
            f"difference {cell(gap)} ({says}; n = {gap['n']} documents)"
        )
    return "\n".join(sentences)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    known = {package: version_of(package) for package in PACKAGES}
    return {"python": platform.python_version()} | {name: version for name, version in known.items() if version}


def version_of(package: str) -> str | None:
    """Installed version, None where it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """System, processor, cores this process may use, memory in GiB, and the GPU where torch has one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"system": platform.platform(terse=True), "processor": _processor(), "cores": cores}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    # Only a process that already runs torch is asked: a report must not pay for importing it.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
