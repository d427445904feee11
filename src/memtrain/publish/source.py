"""What there is to export: a run's model, one of its checkpoints, or a model folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memtrain.errors import UserError
from memtrain.recipe import Recipe, parse_recipe
from memtrain.rl.checkpoint import Position, RunFolder

RECIPE = "memtrain.json"
"""The recipe beside an exported model, in the format of a run's ``recipe.json``."""


@dataclass(frozen=True)
class Source:
    """Weights, and what is known of how they came about."""

    weights: Path
    """A model folder (transformers or peft), or a checkpoint."""
    kind: Literal["model", "checkpoint"]
    """How to read it."""
    facts: Path | None
    """Folder with the numbers: the run's, or the exported model's own; None where there is neither."""
    recipe: Recipe | None
    """The run's; None for a model folder without one."""
    position: Position | None
    """Of a checkpoint."""

    @property
    def is_end(self) -> bool:
        """Whether these are the weights that the run's last evaluation measured."""
        if self.position is None or self.recipe is None:
            return True
        last = ("grpo", self.recipe.train.steps) if self.recipe.train.steps else ("priming", self.recipe.priming.steps)
        return (self.position.stage, self.position.step) == last

    @property
    def is_adapter(self) -> bool:
        """Whether the weights are those of a LoRA adapter alone."""
        if self.kind == "model":
            return (self.weights / "adapter_config.json").is_file()
        return self.recipe is not None and self.recipe.model.lora_rank > 0


def find(folder: Path, checkpoint: str | None = None) -> Source:
    """What a user's folder means: a run (its model, else its newest checkpoint), a checkpoint, or a model folder.

    ``checkpoint``: one of the run's, by name, or ``latest``. Raises :class:`UserError` where there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a run's folder, one of its checkpoints, or a model folder")
    if (folder / "recipe.json").is_file():
        return _of_run(folder, checkpoint)
    if checkpoint is not None:
        raise UserError(f"--checkpoint needs a run's folder, and {folder} is none (no recipe.json); leave it out")
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return _of_model(folder)
    run = above(above(folder))
    if above(folder).name == "checkpoints" and (run / "recipe.json").is_file():
        return _of_checkpoint(run, folder)
    raise UserError(
        f"{folder} is no run (no recipe.json), no checkpoint of one and no model (no config.json or "
        "adapter_config.json); give one of these"
    )


def read_recipe(file: Path) -> Recipe:
    """A recipe in JSON, as a run keeps it. Raises :class:`UserError` where it is broken."""
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{file} is not valid JSON; restore it from a copy of the run") from None
    return parse_recipe(data, str(file))


def above(path: Path) -> Path:
    """The folder that a path stands in, links left alone: a run's model may lie on another disk."""
    return Path(os.path.abspath(path)).parent


def _of_run(run: Path, checkpoint: str | None) -> Source:
    if checkpoint is None and (run / "model").is_dir():
        return _of_model(run / "model")
    names = sorted(path.name for path in (run / "checkpoints").glob("*-*") if path.is_dir())
    if checkpoint in (None, "latest"):
        newest = RunFolder(run).latest()
        if newest is None:
            raise UserError(f"{run} has no model and no checkpoint yet; go on with the run, then export it")
        return _of_checkpoint(run, RunFolder(run).place(newest))
    if checkpoint not in names:
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise UserError(f"{run} has no checkpoint {checkpoint!r}; {known}")
    return _of_checkpoint(run, run / "checkpoints" / checkpoint)


def _of_checkpoint(run: Path, folder: Path) -> Source:
    stage, _, step = folder.name.rpartition("-")
    if stage not in ("priming", "grpo") or not step.isdigit():
        raise UserError(f"{folder} is not named like a checkpoint (priming-000020, grpo-000100); give one that is")
    if (folder / "tinker.json").is_file():
        raise UserError(
            f"the weights of checkpoint {folder} are on the Tinker server; go on with the run to its end and export "
            "its model"
        )
    if not (folder / "optimiser.safetensors").is_file():
        raise UserError(f"checkpoint {folder} has no optimiser.safetensors, so no weights; give another checkpoint")
    return Source(folder, "checkpoint", run, read_recipe(run / "recipe.json"), Position(stage, int(step)))


def _of_model(folder: Path) -> Source:
    run = above(folder)
    if Path(os.path.abspath(folder)).name == "model" and (run / "recipe.json").is_file():
        return Source(folder, "model", run, read_recipe(run / "recipe.json"), None)
    if (folder / RECIPE).is_file():
        return Source(folder, "model", folder, read_recipe(folder / RECIPE), None)
    return Source(folder, "model", None, None, None)
