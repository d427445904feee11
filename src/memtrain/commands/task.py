"""``memtrain task``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from memtrain.commands.options import Model, Overrides, RecipeName, flat
from memtrain.recipe import load_recipe


def task(
    recipe: RecipeName,
    model: Model = None,
    out: Annotated[Path | None, arg(metavar="FOLDER", help="The run's folder. Default: runs/NAME-task.")] = None,
    resume: Annotated[
        FlagCreatePairsOff[bool], arg(help="Go on where the run in the folder stopped, to the same numbers.")
    ] = False,
    overrides: Overrides = (),
) -> None:
    """Train on the recipe's questions (table qa) with GRPO: what comes after MemTrain, or instead of it.

    Example: memtrain task my.toml --set qa.questions=hotpot_train.json --model runs/mine/model --out runs/mine-task
    """
    settings = load_recipe(recipe, flat(overrides))
    from memtrain import task_training

    folder = out or Path("runs") / f"{settings.name}-task"
    task_training.run(settings.with_model(name=model or settings.model.name), folder, resume)
