"""Runs, or goes on with, everything that the table needs; each part is a run folder of its own that ``memtrain show``
and ``--resume`` know.

``seed-<s>/<stage>`` holds the training runs, ``eval/<row>-seed-<s>.json`` the answers of each model. What is there is
not done again.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from memtrain import pipeline, task_training
from memtrain.compare.report import write_report
from memtrain.compare.rows import BASE, LONGER, MEMTRAIN, TASK, Variant, variants
from memtrain.compare.table import Answers
from memtrain.errors import UserError
from memtrain.qa.split import load_split
from memtrain.recipe import Recipe
from memtrain.report.plots import read_metrics
from memtrain.rl.checkpoint import RunFolder, write_atomically


def compare(recipe: Recipe, out: Path) -> None:
    """Every row of every seed, then the report. The same command again goes on where it was stopped.

    Raises :class:`UserError` where ``out`` holds a comparison made with other settings, and for the questions' faults
    before anything is trained.
    """
    load_split(recipe.qa, need_gold=recipe.qa.kind == "long")
    folder = RunFolder(out)
    with folder.locked():
        folder.check(recipe, resume=True)
        _same_steps(folder, recipe)
        folder.claim(recipe)
        answers = _Comparison(recipe, out).answers()
        write_report(recipe, answers, out)


class _Comparison:
    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        (out / "eval").mkdir(exist_ok=True)

    def answers(self) -> Answers:
        """Answers of every row; trains what is missing on the way."""
        found: Answers = {BASE: {}}
        first = self.recipe.compare.seeds[0]
        # The base model has no training to vary: measured once.
        found[BASE][first] = self._measured(BASE, first, self.recipe, self.recipe.model.name)
        for seed in self.recipe.compare.seeds:
            recipe = self.recipe.model_copy(update={"seed": seed})
            for variant in variants(recipe):
                self._variant(variant, seed, found)
        return found

    def _variant(self, variant: Variant, seed: int, found: Answers) -> None:
        recipe, base = variant.recipe, self.recipe.model.name
        prefix = self.out / f"seed-{seed}"
        if variant.is_full:
            task = self._task(prefix / TASK, recipe, base)
            found.setdefault(TASK, {})[seed] = self._measured(TASK, seed, recipe, task)
        model = self._memtrain(prefix / variant.name, recipe)
        found.setdefault(variant.name, {})[seed] = self._measured(variant.name, seed, recipe, model)
        after = self._task(prefix / variant.after_task, recipe, model)
        found.setdefault(variant.after_task, {})[seed] = self._measured(variant.after_task, seed, recipe, after)
        if variant.is_full and recipe.compare.equal_compute:
            longer = self._longer(prefix, recipe)
            found.setdefault(LONGER, {})[seed] = self._measured(LONGER, seed, recipe, longer)

    def _memtrain(self, folder: Path, recipe: Recipe) -> str:
        """The MemTrain stage; its model's folder."""
        if not (folder / "summary.json").exists():
            pipeline.train(recipe, RunFolder(folder), resume=True)
            gc.collect()  # an engine is a ring of references: without this the next one finds its memory taken
        return str(folder / "model")

    def _task(self, folder: Path, recipe: Recipe, start: str, steps: int | None = None) -> str:
        """The task stage from a model; its model's folder."""
        if not (folder / "summary.json").exists():
            train = recipe.qa.train.model_copy(update={"steps": steps or recipe.qa.train.steps})
            named = recipe.model.model_copy(update={"name": start})
            changed = {"model": named, "qa": recipe.qa.model_copy(update={"train": train})}
            task_training.run(recipe.model_copy(update=changed), folder, resume=True)
            gc.collect()
        return str(folder / "model")

    def _longer(self, prefix: Path, recipe: Recipe) -> str:
        """Task training alone, longer by the seconds that the MemTrain stage took. Its first steps are those of the
        row ``task``, so it starts where that one stopped."""
        folder, plan = prefix / LONGER, prefix / f"{LONGER}.json"
        if not plan.exists():  # times are measured: the number of steps is settled once
            memtrain, task = training_seconds(prefix / MEMTRAIN), training_seconds(prefix / TASK)
            steps = recipe.qa.train.steps
            extra = round(memtrain / (task / steps)) if task else 0
            write_atomically(plan, json.dumps({"memtrain_seconds": memtrain, "task_seconds": task, "extra": extra}))
        extra = json.loads(plan.read_text())["extra"]
        if not folder.exists() and (prefix / TASK / "checkpoints").exists():
            _branch(prefix / TASK, folder)
        return self._task(folder, recipe, self.recipe.model.name, recipe.qa.train.steps + extra)

    def _measured(self, row: str, seed: int, recipe: Recipe, model: str) -> list[dict[str, Any]]:
        """A model's answers to the evaluation's questions, with their scores: read back, or asked for."""
        file = self.out / "eval" / f"{row}-seed-{seed}.json"
        if not file.exists():
            asked = task_training.measure(recipe.with_model(name=model), f"{row}, seed {seed}")
            write_atomically(file, json.dumps(asked, ensure_ascii=False))
            gc.collect()
        records: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return records


def training_seconds(folder: Path) -> float:
    """Seconds that a run's training steps take: of each stage the median step times the number of steps, so that a
    machine that slept or was busy with something else does not count."""
    seconds: dict[str, list[float]] = {}
    for row in read_metrics(folder / "metrics.jsonl"):
        seconds.setdefault(row["stage"], []).append(row["seconds"])
    return sum(len(steps) * median(steps) for steps in seconds.values())


def _branch(source: Path, target: Path) -> None:
    """A run folder that goes on where another one stopped; checkpoints are linked, they never change."""
    part = target.with_name(f".part-{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    link: Callable[[str, str], Any] = os.link
    try:
        shutil.copytree(source / "checkpoints", part / "checkpoints", copy_function=link)
    except (OSError, shutil.Error):  # a file system without hard links
        shutil.rmtree(part / "checkpoints", ignore_errors=True)
        shutil.copytree(source / "checkpoints", part / "checkpoints")
    for name in ("recipe.json", "metrics.jsonl"):
        shutil.copy(source / name, part / name)
    part.rename(target)


def _same_steps(folder: RunFolder, recipe: Recipe) -> None:
    """A run may be made longer, a comparison may not: its finished rows would be of another length."""
    if not folder.started:
        return
    before = json.loads((folder.path / "recipe.json").read_text(encoding="utf-8"))
    if before["train"]["steps"] != recipe.train.steps:
        raise UserError(
            f"{folder.path} was started with train.steps = {before['train']['steps']}, now it is "
            f"{recipe.train.steps}; keep it, or choose another --out"
        )
