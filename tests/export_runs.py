"""Runs for the tests of ``memtrain export``: trained in miniature, laid out as a run leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import tiny_run
from test_engine_state import steps

from memtrain.engines.torch.engine import TorchEngine
from memtrain.publish.export import Wishes, export
from memtrain.recipe import Recipe


def engine_run(run: Path, *, lora_rank: int = 0, dtype: str = "float32", updates: int = 2) -> TorchEngine:
    """A run folder with a checkpoint and a model, and the engine that they were written by."""
    recipe = tiny_run.small(model={"lora_rank": lora_rank, "dtype": dtype})
    engine = tiny.engine(Path(recipe.model.name), dtype=dtype, lora_rank=lora_rank)
    steps(engine, range(updates))
    for folder, write in ((run / "checkpoints" / "grpo-000002", engine.save), (run / "model", engine.export)):
        folder.mkdir(parents=True)
        tiny.run(write(folder))
    write_recipe(run, recipe)
    return engine


def write_recipe(run: Path, recipe: Recipe) -> None:
    (run / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")


def exported(source: Path, out: Path, **wishes: Any) -> Path:
    return export(source, out, Wishes(**wishes))


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")
