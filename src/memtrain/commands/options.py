"""Options that several commands take, and what their help says."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from memtrain.assets import CORPORA, MODELS
from memtrain.recipe import Recipe, builtin_recipes

RECIPES_TEXT = f"built in: {', '.join(builtin_recipes())}"
MODELS_TEXT = (
    f"built in: {', '.join(MODELS)} (default {Recipe().model.name}); else a local folder, a .gguf file or a hub id"
)
CORPORA_TEXT = (
    f"built in: {', '.join(CORPORA)} (default {Recipe().corpus.source}); else a file, a folder or hf:dataset[:config]"
)

RecipeName = Annotated[Positional[str], arg(metavar="RECIPE", help=f"Name or .toml file. Recipes {RECIPES_TEXT}.")]
Overrides = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(
        name="set",
        metavar="KEY=VALUE [KEY=VALUE ...]",
        help=f"Change settings of the recipe, for example --set train.steps=10 model=NAME corpus=SOURCE. "
        f"Models {MODELS_TEXT}. Corpora {CORPORA_TEXT}.",
    ),
]
Model = Annotated[str | None, arg(metavar="MODEL", help=f"Model instead of the recipe's. Models {MODELS_TEXT}.")]
Out = Annotated[
    Path | None,
    arg(
        metavar="FOLDER",
        help="Where the results go. Default: runs/NAME, NAME from the recipe (build: runs/NAME/documents).",
    ),
]


def flat(overrides: Overrides) -> list[str]:
    """``--set`` may be given several times, each with several pairs."""
    return list(chain.from_iterable(overrides))
