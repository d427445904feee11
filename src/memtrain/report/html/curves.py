"""Which curves the report draws, and their points: plain data, nothing of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memtrain.evaluation.statistics import Estimate, clustered
from memtrain.report.html.load import RunData
from memtrain.report.plots import CURVES, SUPERVISED
from memtrain.report.run_files import is_number

Stage = Literal["priming", "GRPO"]
MOST_POINTS = 1000
"""Of a longer curve every n-th step is shown."""
TITLES: dict[str, tuple[str, str]] = {key: (title, unit) for key, title, unit in CURVES} | {
    "dropped_share": ("groups dropped: all rewards alike", "share of all groups"),
    "clip_fraction": ("tokens whose ratio was clipped", "share"),
    "sampler_kl": ("KL, sampler to trainer", "nats a token"),
    "tokens_per_second": ("throughput", "tokens/s"),
    "seconds": ("time of a step", "seconds"),
    "lr": ("learning rate", ""),
    "searches": ("searches", "an episode"),
    "answered": ("episodes that end in an answer", "share"),
    "failed_searches": ("searches that failed", "share"),
    "lost_turns": ("turns without an action", "share"),
}
"""Key in metrics.jsonl -> title and unit."""
SECTIONS: dict[str, tuple[str, ...]] = {
    "Rewards": ("reward", "recall_reward", "reconstruction_reward", "reward_std_in_group", "dropped_share"),
    "Memory": ("entities_kept", "memory_tokens", "truncated"),
    "Search": ("searches", "answered", "failed_searches", "lost_turns"),
    "Optimisation": ("kl", "grad_norm", "entropy", "cross_entropy", "clip_fraction", "sampler_kl"),
    "Speed": ("tokens_per_second", "seconds"),
}
IN_PRIMING = (*SUPERVISED, "tokens_per_second", "seconds")
"""What a priming step says something about."""
HELD_OUT = ("recall_likelihood_gain", "entities_kept")
"""Metrics whose evaluations during training make a curve."""


@dataclass(frozen=True)
class Series:
    """One line: of one run, and of one stage of it."""

    run: int
    """Place of the run in the report."""
    stage: Stage
    points: tuple[tuple[int, float], ...]
    """(step, value); GRPO's steps are counted on after priming's."""


@dataclass(frozen=True)
class Panel:
    """One chart."""

    key: str
    title: str
    unit: str
    section: str
    series: tuple[Series, ...]


def panels(runs: Sequence[RunData]) -> list[Panel]:
    """A panel for every known metric that some step reports and that is not zero throughout."""
    found = []
    for section, keys in SECTIONS.items():
        for key in keys:
            series = [line for place, run in enumerate(runs) for line in _series(run, place, key)]
            # Zero everywhere says something of drops and cuts, and nothing of what is off.
            silent = key in ("clip_fraction", "failed_searches", "lost_turns")
            if series and not (silent and not any(y for line in series for _, y in line.points)):
                found.append(Panel(key, *TITLES[key], section, tuple(series)))
    return found


def _series(run: RunData, place: int, key: str) -> list[Series]:
    primed = run.primed
    lines: list[Series] = []
    for stage, offset in (("priming", 0), ("GRPO", primed)):
        if stage == "priming" and key not in IN_PRIMING:
            continue
        rows = [row for row in run.metrics if (row["stage"] == "priming") == (stage == "priming")]
        points = [(row["step"] + offset, float(row[key])) for row in rows if is_number(row.get(key))]
        if points:
            every = -(-len(points) // MOST_POINTS)
            lines.append(Series(place, "priming" if stage == "priming" else "GRPO", tuple(points[::every])))
    return lines


def thinned(runs: Sequence[RunData]) -> bool:
    """Whether some curve is too long to be shown step by step."""
    return any(len(run.metrics) > MOST_POINTS for run in runs)


def held_out(run: RunData, metric: str) -> list[tuple[int, Estimate]]:
    """(GRPO step, estimate) of every evaluation of a run that has any in the middle; before priming is left out."""
    labels = [label for label in run.evaluations if label.startswith("step-")]
    if not labels:
        return []
    places = {label: int(label.removeprefix("step-")) for label in labels if label[5:].isdigit()}
    places["after_priming" if "after_priming" in run.evaluations else "before"] = 0
    last = max((row["step"] for row in run.metrics if row["stage"] != "priming"), default=0)
    if "after" in run.evaluations and last:
        places["after"] = last
    found = []
    for label, step in places.items():
        if label in run.evaluations:
            try:
                value = clustered(run.evaluations[label].records, metric)
            except (TypeError, ValueError):
                continue
            if value["mean"] is not None:
                found.append((step, value))
    return sorted(found, key=lambda point: point[0])
