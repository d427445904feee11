"""What the report needs of a run's folder, as far as it is there: a file that is missing or damaged leaves a note."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memtrain.errors import UserError
from memtrain.evaluation.metrics import METRICS, split_name
from memtrain.evaluation.proxy import EvalResult
from memtrain.evaluation.statistics import Estimate
from memtrain.report.run_files import Tail, is_number
from memtrain.report.summary import STAGES

Estimates = dict[str, Estimate]
SIGNS = ("recipe.json", "metrics.jsonl", "summary.json")
"""A folder with one of these is a run."""
COMPARISON = "compare.json"
"""A folder with this is a comparison."""
Tick = Callable[[], None]


@dataclass
class RunData:
    """One run as far as it went."""

    name: str
    """Shown: the folder's name, with its parents' where two runs share it."""
    path: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    """Settings as the run wrote them; empty where they are not there."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """One a step, in order, with ``dropped_share`` (of all groups) added."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Empty where the run is not finished."""
    evaluations: dict[str, EvalResult] = field(default_factory=dict)
    """By label, in the order of time."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of the stages."""
    stages: dict[str, Estimates] = field(default_factory=dict)
    """What each evaluation measured, under the names of ``summary.STAGES``."""
    difference: Estimates = field(default_factory=dict)
    """Newest evaluation minus first, paired by document."""
    by_stage: dict[str, Estimates] = field(default_factory=dict)
    """What priming and GRPO gave, each against the evaluation before it."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know: files that are missing, damaged or cut short."""

    @property
    def primed(self) -> int:
        """Priming steps done: GRPO's steps are counted on after them."""
        return max((row["step"] for row in self.metrics if row["stage"] == "priming"), default=0)

    def fact(self, key: str, *path: str) -> Any:
        """A value of the summary, or of the recipe under ``path``; None where neither has it."""
        if self.summary.get(key) is not None:
            return self.summary[key]
        value: Any = self.recipe
        for part in path or (key,):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders' runs: a comparison (``memtrain compare``) stands for those inside it, which may be gone.

    Raises UserError for a folder that is neither.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder of a run (memtrain train, demo, task, compare)")
        inside = sorted(file.parent for file in folder.glob("seed-*/*/metrics.jsonl"))
        if inside:
            found += inside
        elif any((folder / sign).is_file() for sign in SIGNS):
            found.append(folder)
        elif not (folder / COMPARISON).is_file():
            raise UserError(
                f"{folder} holds no run ({', '.join(SIGNS)} are missing); give the folder of memtrain train, demo, "
                "task or compare"
            )
    return list(dict.fromkeys(found))


def load_runs(folders: Sequence[Path], tick: Tick = lambda: None) -> list[RunData]:
    """Every run of :func:`find_runs`; ``tick`` after each. Raises UserError where one has nothing that can be shown."""
    runs = []
    for folder, name in zip(folders, short_names(folders), strict=True):
        runs.append(load_run(folder, name))
        tick()
    return runs


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def load_run(folder: Path, name: str) -> RunData:
    """One run. Raises UserError where no file of it can be read."""
    run = RunData(name, folder)
    run.recipe = _object(run, "recipe.json")
    run.summary = _object(run, "summary.json")
    run.seconds = {key: value for key, value in _object(run, "seconds.json").items() if is_number(value)}
    tail = Tail(folder / "metrics.jsonl")
    run.metrics = [_with_share(row) for row in tail.rows()]
    run.notes += tail.warnings(running=False)
    for file in sorted((folder / "eval").glob("*.json"), key=lambda file: _time_order(file.stem)):
        try:
            result = EvalResult.load(file)
            records = [row for row in result.records if isinstance(row, dict) and isinstance(row.get("document"), str)]
            run.evaluations[file.stem] = replace(result, records=records)
        except (UserError, TypeError, OSError, UnicodeDecodeError) as error:
            run.notes.append(str(error) if isinstance(error, UserError) else f"{file} is damaged and left out")
    if not (run.recipe or run.metrics or run.summary or run.evaluations):
        raise UserError(f"{folder}: nothing in this run can be read ({'; '.join(run.notes) or 'its files are empty'})")
    _measured(run)
    if not run.summary:
        run.notes.append("The run is not finished (no summary.json): shown as far as it went.")
    return run


def _object(run: RunData, name: str) -> dict[str, Any]:
    """A JSON object of the run's folder; empty, with a note, where it is damaged."""
    try:
        data = json.loads((run.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        run.notes.append(f"{run.path / name} is not valid JSON and left out")
        return {}
    return data


def _with_share(row: dict[str, Any]) -> dict[str, Any]:
    counts = [row.get("dropped_groups"), row.get("groups")]
    dropped, kept = (float(value) if is_number(value) else 0.0 for value in counts)  # type: ignore[arg-type]
    return row | {"dropped_share": dropped / (dropped + kept)} if None not in counts and dropped + kept > 0 else row


def _time_order(label: str) -> tuple[int, int, str]:
    """before, after_priming, step-N by number, after, then the rest."""
    order = {"before": 0, "after_priming": 1, "after": 3}
    number = label.removeprefix("step-")
    if label.startswith("step-") and number.isdigit():
        return 2, int(number), label
    return order.get(label, 4), 0, label


def _measured(run: RunData) -> None:
    """Stages and differences: from the summary, else from the evaluations that are there."""
    run.stages = {stage: found for stage in STAGES if (found := estimates(run.summary.get(stage)))}
    if run.stages:
        run.difference = estimates(run.summary.get("difference"))
        parts = run.summary.get("difference_by_stage")
        run.by_stage = {str(key): estimates(value) for key, value in (parts if isinstance(parts, dict) else {}).items()}
        return
    try:
        known = [label for label in STAGES if label in run.evaluations]
        run.stages = {label: estimates(run.evaluations[label].summary()) for label in known}
        if len(known) > 1:
            run.difference = estimates(run.evaluations[known[-1]].difference(run.evaluations[known[0]]))
    except (ValueError, TypeError, KeyError):
        run.stages, run.difference = {}, {}
        run.notes.append(f"{run.path}/eval holds records that are not of this version; their means are left out")


def estimates(value: object) -> Estimates:
    """The well-formed estimates of known metrics."""
    if not isinstance(value, Mapping):
        return {}
    return {str(name): found for name, found in value.items() if _known(str(name)) and _is_estimate(found)}


def _known(name: str) -> bool:
    try:
        return split_name(name)[0] in METRICS
    except ValueError:
        return False


def _is_estimate(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("ci95"), list) or len(value["ci95"]) != 2:
        return False
    bounds = [value.get("mean"), *value["ci95"]]
    paired = (bounds[1] is None) == (bounds[2] is None)
    return paired and is_number(value.get("n")) and all(bound is None or is_number(bound) for bound in bounds)
