"""What a run's folder says while another process writes to it.

Everything is read from outside: whole files as the trainer leaves them, the growing ``metrics.jsonl`` as far as its
last whole line. Nothing here writes, and nothing that is half-written, gone or replaced between two looks is an error.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from memtrain.errors import UserError
from memtrain.evaluation.proxy import EvalResult
from memtrain.evaluation.statistics import Estimate
from memtrain.report.run_files import Lock, Tail, is_number
from memtrain.report.show import read_rows, steps_of

State = Literal["missing", "empty", "starting", "running", "stopped", "finished"]
PACE_STEPS = 10
"""Steps whose mean is the pace."""
SIGNS = ("metrics.jsonl", "seconds.json", "recipe.json", "summary.json", "samples", "eval", "checkpoints", "documents")


@dataclass(frozen=True)
class Stage:
    """One part of a run, in the order of time."""

    name: str
    """``documents``, ``evaluation before``, ``priming``, ``grpo``, ``model`` ..."""
    done: int
    total: int
    """Steps; for what has no steps, of 1."""
    seconds: float | None = None
    """How long it took, or has taken up to the last sign of it."""

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left."""
        return self.done >= self.total


@dataclass(frozen=True)
class Sample:
    """A memory of a rollout and the one before it."""

    step: int
    document: str
    write: int
    """Which write of its episode it is, from 1."""
    before: str
    """What the memory held before; empty for the first write."""
    after: str
    reward: float | None


@dataclass(frozen=True)
class Evaluation:
    """The newest finished evaluation."""

    label: str
    values: Mapping[str, Estimate]
    start: Mapping[str, Estimate]
    """The run's first evaluation; empty where this is the first."""


@dataclass(frozen=True)
class Look:
    """The whole of a run at one moment."""

    folder: Path
    state: State
    recipe: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    """Steps in the order of time, as ``metrics.jsonl`` has them."""
    evaluation: Evaluation | None = None
    sample: Sample | None = None
    quiet: float | None = None
    """Seconds since the last file was written."""
    warnings: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage | None:
        """The one under way; None before the first and after the last."""
        return next((stage for stage in self.stages if not stage.finished), None)

    def pace(self) -> float | None:
        """Seconds a step of the stage under way, the mean of its last steps; None before the first."""
        stage = self.stage
        seconds = [
            float(row["seconds"])
            for row in self.rows
            if stage and row["stage"] == stage.name and is_number(row.get("seconds"))
        ][-PACE_STEPS:]
        return sum(seconds) / len(seconds) if seconds else None

    def left(self) -> float | None:
        """Seconds the stage under way still takes at its pace; None where no pace is known."""
        stage, pace = self.stage, self.pace()
        if self.state != "running" or stage is None or pace is None:
            return None
        return max(0.0, pace * (stage.total - stage.done) - min(self.quiet or 0.0, pace))


class Follower:
    """Looks at one run's folder again and again; what did not change is not read again."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self.folder, self.now = folder, now
        self.metrics = Tail(folder / "metrics.jsonl")
        self._lock = Lock(folder / ".lock")
        self._kept: dict[str, tuple[Any, Any]] = {}

    def look(self) -> Look:
        """The run as it is now. Raises UserError where the folder's place is taken by a file, or holds several runs."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; give the folder of a run")
        if not folder.is_dir():
            return Look(folder, "missing")
        held = self._lock.held()
        recipe = self._json("recipe.json")
        if not recipe and not held and not (folder / "recipe.json").exists():
            if runs := sorted(path.parent.name for path in folder.glob("*/recipe.json")):
                raise UserError(f"{folder} holds {len(runs)} runs; name one of them, for example {folder / runs[0]}")
            return Look(folder, "empty")
        rows = tuple(self.metrics.rows())
        finished = (folder / "summary.json").exists() and not held
        state: State = "finished" if finished else "running" if held else "stopped"
        if state == "running" and not recipe:
            state = "starting"
        newest = self._newest()
        evaluation, trouble = self._evaluation()
        sample, broken = self._sample()
        return Look(
            folder,
            state,
            recipe,
            stages_of(folder, recipe, rows, self._json("seconds.json"), finished),
            rows,
            evaluation,
            sample,
            max(0.0, self.now() - newest) if newest else None,
            (*self.metrics.warnings(state == "running"), *trouble, *broken),
        )

    def _newest(self) -> float:
        return max((_changed(self.folder / name) for name in SIGNS), default=0.0)

    def _json(self, name: str) -> dict[str, Any]:
        def read(path: Path) -> dict[str, Any]:
            found = json.loads(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}

        return self._cached(self.folder / name, read) or {}

    def _evaluation(self) -> tuple[Evaluation | None, list[str]]:
        files = sorted((self.folder / "eval").glob("*.json"), key=lambda file: (_changed(file), file.name))
        trouble = []
        for file in reversed(files):
            result = self._cached(file, lambda path: EvalResult.load(path).summary())
            if result is None:
                trouble.append(f"eval/{file.name} cannot be read")
                continue
            first = self.folder / "eval" / "before.json"
            start = self._cached(first, lambda path: EvalResult.load(path).summary()) if first != file else None
            return Evaluation(file.stem, result, start or {}), trouble
        return None, trouble

    def _sample(self) -> tuple[Sample | None, list[str]]:
        files = steps_of((self.folder / "samples").glob("*.parquet"))
        broken = []
        for step in sorted(files, reverse=True):
            rows = self._cached(files[step], read_rows, keep="sample")
            if rows is None:
                broken.append(f"samples/{files[step].name} is not a whole Parquet file")
            elif found := sample_of(rows, step):
                return found, broken
        return None, broken

    def _cached(self, path: Path, read: Callable[[Path], Any], keep: str = "") -> Any:
        """What ``read`` makes of the file, once for each of its versions; None where it cannot be read."""
        try:
            state = path.stat()
        except OSError:
            return None
        version = (path, state.st_ino, state.st_size, state.st_mtime_ns)
        key = keep or path.name
        if key not in self._kept or self._kept[key][0] != version:
            try:
                found = read(path)
            except (OSError, ValueError, TypeError, KeyError, UserError):
                found = None
            self._kept[key] = (version, found)
        return self._kept[key][1]


def stages_of(
    folder: Path, recipe: Mapping[str, Any], rows: tuple[Mapping[str, Any], ...], seconds: Mapping[str, Any], over: bool
) -> tuple[Stage, ...]:
    """The parts of a run, in order, each with how much of it is done."""
    if not recipe:
        return (Stage("documents", 0, 1),)

    def steps(name: str) -> Stage:
        own = [row for row in rows if row["stage"] == name]
        section = recipe.get("train" if name == "grpo" else name)
        total = section.get("steps", 0) if isinstance(section, dict) else 0
        spent = sum(float(row["seconds"]) for row in own if is_number(row.get("seconds")))
        return Stage(name, max((int(row["step"]) for row in own), default=0), int(total), spent or None)

    def evaluation(label: str) -> Stage:
        spent = seconds.get(f"evaluation {label}")
        done = (folder / "eval" / f"{label}.json").exists()
        return Stage(f"evaluation {label}", int(done), 1, spent if is_number(spent) else None)

    primes, trains = steps("priming"), steps("grpo")
    found = [primes] * bool(primes.total) + [trains] * bool(trains.total)
    if (folder / "documents").is_dir():  # a task's run has none, and is measured by another command
        found = [evaluation("before")]
        if primes.total:
            found += [primes, evaluation("after_priming")]
        if trains.total:
            found += [trains, evaluation("after")]
    return (*found, Stage("model", int(over), 1))


def sample_of(rows: list[dict[str, Any]], step: int) -> Sample | None:
    """The last memory of the first group's best episode; None where the rows hold no write."""
    writes = [row for row in rows if row.get("kind") == "write" and row.get("text") is not None]
    writes = [row for row in writes if row.get("group_id") == writes[0].get("group_id")]
    if not writes:
        return None
    best = max(writes, key=lambda row: row["reward"] if is_number(row.get("reward")) else -math.inf)
    own = sorted(
        (row for row in writes if row.get("trajectory_id") == best.get("trajectory_id")), key=lambda row: row["step"]
    )
    before = str(own[-2]["text"]) if len(own) > 1 else ""
    reward = best.get("reward")
    return Sample(
        step,
        str(best.get("group_id", "")),
        len(own),
        before,
        str(own[-1]["text"]),
        reward if is_number(reward) else None,
    )


def _changed(path: Path) -> float:
    """When a file, or anything directly in a folder, was last written; 0 where there is nothing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
