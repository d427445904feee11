"""``memtrain suite``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from memtrain.commands.options import Model, Overrides, RecipeName, flat
from memtrain.recipe import load_recipe


def suite(
    recipe: RecipeName,
    tasks: Annotated[
        tuple[str, ...],
        arg(
            metavar="TASK [TASK ...]",
            help="RULER over Wikipedia: niah-single, niah-single-uuid, niah-multi-key, niah-multi-key-lines, "
            "niah-multi-key-uuid, niah-multi-value, niah-multi-query, vt (variable tracking), cwe (common words), fwe "
            "(frequent words); and after-reading (the question is unknown while the memory is written).",
        ),
    ] = ("niah-single", "niah-multi-key", "niah-multi-value", "niah-multi-query", "vt", "fwe", "after-reading"),
    lengths: Annotated[tuple[int, ...], arg(metavar="TOKENS [TOKENS ...]", help="Lengths of the texts.")] = (
        1000,
        4000,
    ),
    number: Annotated[int, arg(metavar="N", help="Texts a task and length, drawn by the recipe's seed.")] = 16,
    model: Model = None,
    out: Annotated[Path, arg(metavar="FOLDER", help="Where suites.json, suites.md and suites.png go.")] = Path(
        "runs/suites"
    ),
    overrides: Overrides = (),
) -> None:
    """Label-free tests of a memory: RULER's needles, variables and word counts, and questions after reading.

    Texts are made from the corpus's held-out pages; nothing needs labels. Beside the reader stand BM25, the full
    context where it fits, and no text at all.

    Example: memtrain suite demo-cpu --tasks niah-single vt after-reading --lengths 1000 4000 --number 16

    Example: memtrain suite demo-cpu --tasks niah-multi-key --lengths 16000 128000 --model runs/demo/model
    """
    settings = load_recipe(recipe, flat(overrides))
    from memtrain import suites

    suites.run(settings.with_model(name=model or settings.model.name), tasks, lengths, number, out)
