"""``memtrain compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from memtrain.commands.options import Overrides, RecipeName, flat
from memtrain.recipe import load_recipe


def compare(
    recipe: RecipeName,
    out: Annotated[Path | None, arg(metavar="FOLDER", help="Runs, answers and the report. Default: runs/NAME.")] = None,
    overrides: Overrides = (),
) -> None:
    """Does MemTrain help? Trains base, + MemTrain, + task RL, both, and task RL with MemTrain's compute; compares them.

    The recipe's tables qa and compare say which questions, steps, seeds and ablations. The same command goes on where
    it was stopped. Writes compare.md, compare.json and plots.

    Example: memtrain compare compare-cpu --set qa.questions=hotpot_train.json --out runs/compare
    """
    settings = load_recipe(recipe, flat(overrides))
    from memtrain.compare.run import compare as run

    run(settings, out or Path("runs") / settings.name)
