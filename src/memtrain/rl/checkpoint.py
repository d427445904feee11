"""Checkpoints that are whole or not there, and the run folder they live in.

A checkpoint is written beside its place and renamed into it, so one that can be seen is complete. All randomness of a
step is derived from the recipe's seed and the step, so "after step s" is the whole state: weights, optimiser, data
position.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from memtrain.engines.base import Engine
from memtrain.errors import UserError
from memtrain.recipe import Recipe

FREE_TO_CHANGE = {"name", "log", "chat", "serve", "train.steps", "eval.every", "model.device"} | {
    *(f"sampler.{key}" for key in ("url", "adapter_folder", "kv_cache_gib", "gpu_memory_utilization")),
    *(f"search.{key}" for key in ("url", "timeout", "retries", "connections", "max_failed_share")),
    *(f"tinker.{key}" for key in ("base_url", "max_requests", "rows_multiple", "patience", "request_timeout")),
    *(f"compare.{key}" for key in ("seeds", "equal_compute", "ablations")),
}
"""What may differ when a run is resumed: neither finished steps nor finished evaluations depend on it."""


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    stage: str
    """``priming`` or ``grpo``."""
    step: int
    """Finished steps of that stage."""


class Store(Protocol):
    """A copy of a run's folder elsewhere (``launch/storage.py``)."""

    def push(self) -> None: ...
    def fetch(self) -> None: ...


class RunFolder:
    """``runs/<name>``: recipe, documents, metrics, samples, checkpoints, evaluations, model, summary."""

    def __init__(self, path: Path, store: Store | None = None, launch: str = ""):
        """``store``: keeps a copy of the folder where all machines reach it. ``launch``: tells a restart of the same
        launch, which goes on by itself, from a second run."""
        self.path, self.store, self.launch = path, store, launch

    def kept(self) -> None:
        """Something was finished: bring the copy up to date."""
        if self.store is not None:
            self.store.push()

    def fetch(self) -> None:
        """Bring this machine's folder up to date with the copy."""
        if self.store is not None:
            self.store.fetch()

    @property
    def metrics_file(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Holds ``<stage>-<step>/``."""
        return self.path / "checkpoints"

    @property
    def started(self) -> bool:
        """Whether a run has claimed the folder."""
        return (self.path / "recipe.json").exists()

    def check(self, recipe: Recipe, resume: bool) -> None:
        """Whether a run of this recipe may use the folder.

        Raises :class:`UserError` where it already holds a run and ``resume`` is off, where that run was made by other
        settings or is finished, and where the folder holds something else. ``resume`` in an empty folder starts anew.
        """
        if self.started:
            if not resume and not self._launched_so():
                raise UserError(
                    f"{self.path} already holds a run; add --resume to go on with it, choose another --out, "
                    "or delete the folder"
                )
            before = json.loads((self.path / "recipe.json").read_text(encoding="utf-8"))
            self._check_same(before, recipe.model_dump(mode="json"))
            if (self.path / "summary.json").exists() and before["train"]["steps"] == recipe.train.steps:
                raise UserError(
                    f"the run in {self.path} is finished; raise train.steps to train further, or choose another --out"
                )
            done = self.latest()
            if done is not None and done.stage == "grpo" and done.step > recipe.train.steps:
                raise UserError(
                    f"the run in {self.path} has done {done.step} steps already; set train.steps to {done.step} or "
                    "more, or choose another --out"
                )
        elif any(p.name not in {".lock", ".ray", "documents"} for p in self.path.iterdir()):
            raise UserError(f"{self.path} holds files but no run (no recipe.json); choose another --out folder")

    def claim(self, recipe: Recipe) -> None:
        """Make the folder this run's; what an interrupted write left behind is removed."""
        for leftover in self.path.glob("**/.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if (self.path / "summary.json").exists():  # trained further: the old end is no longer the end
            for name in ("summary.json", "eval/after.json"):
                (self.path / name).unlink(missing_ok=True)
        write_atomically(self.path / "recipe.json", json.dumps(recipe.model_dump(mode="json"), indent=2))
        if self.launch:
            write_atomically(self.path / "launch.txt", self.launch)

    def _launched_so(self) -> bool:
        file = self.path / "launch.txt"
        return bool(self.launch) and file.exists() and file.read_text(encoding="utf-8") == self.launch

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = []
        # A setting that is younger than the run had its default then.
        defaults = Recipe().model_dump(mode="json")
        for section, values in now.items():
            old = before.get(section, defaults[section])
            if not isinstance(values, dict):
                changed += [section] if values != old else []
            else:
                old = defaults[section] | (old if isinstance(old, dict) else {})
                keys = [key for key in values if values[key] != old.get(key)]
                changed += [f"{section}.{key}" for key in keys if section not in FREE_TO_CHANGE]
        changed = [key for key in changed if key not in FREE_TO_CHANGE]
        if changed:
            raise UserError(
                f"{self.path} was started with other settings ({', '.join(changed)} differ); resume with the same "
                "recipe, or choose another --out"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out of the folder."""
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                sentence = f"another process is working in {self.path}; wait for it or choose another --out"
                raise UserError(sentence) from None
            yield

    def latest(self) -> Position | None:
        """The newest complete checkpoint; priming comes before GRPO."""
        found = []
        for folder in self.checkpoints.glob("*-*"):
            stage, _, step = folder.name.rpartition("-")
            if stage in ("priming", "grpo") and step.isdigit():
                found.append((stage == "grpo", int(step), stage))
        return Position(max(found)[2], max(found)[1]) if found else None

    def place(self, position: Position) -> Path:
        """Folder of a checkpoint."""
        return self.checkpoints / f"{position.stage}-{position.step:06d}"

    async def save(self, engine: Engine, position: Position, keep: int) -> None:
        """Write a checkpoint; afterwards remove all but the newest ``keep``. A full disk leaves the old ones whole."""
        target = self.place(position)
        if target.exists():
            return
        async with PartialFolder(target) as part:
            await engine.save(part)
        for old in sorted(self.checkpoints.glob("*-*"), key=lambda p: p.stat().st_mtime)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        self.kept()

    def cut_metrics(self, position: Position | None) -> None:
        """Drop metric lines of steps after the checkpoint, which will run again."""
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            later = position is None or (row["stage"] == "grpo" and position.stage == "priming")
            if not later and (row["stage"] != position.stage or row["step"] <= position.step):  # type: ignore[union-attr]
                kept.append(line)
        write_atomically(self.metrics_file, "".join(f"{line}\n" for line in kept))

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")


class PartialFolder:
    """``async with`` a folder that is renamed to ``target`` only when everything in it was written."""

    def __init__(self, target: Path):
        self.target = target
        self.part = target.parent / f".partial-{target.name}"

    async def __aenter__(self) -> Path:
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        return self.part

    async def __aexit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            shutil.rmtree(self.part, ignore_errors=True)
            return
        for file in self.part.rglob("*"):
            if file.is_file():  # tokenizers with several templates save a folder of them
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if self.target.exists():
            shutil.rmtree(self.target)
        os.replace(self.part, self.target)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
