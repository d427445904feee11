"""``memtrain qa``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from memtrain.commands.options import Model, Overrides, RecipeName, flat
from memtrain.recipe import load_recipe


def qa(
    recipe: RecipeName,
    questions: Annotated[
        Positional[Path],
        arg(metavar="QUESTIONS", help="HotpotQA, 2WikiMultihopQA, MuSiQue, SQuAD, XQuAD or NQ file, as published."),
    ],
    lengths: Annotated[
        tuple[int, ...], arg(metavar="TOKENS [TOKENS ...]", help="Lengths of the texts around the gold paragraphs.")
    ] = (1000, 2000, 4000),
    number: Annotated[int, arg(metavar="N", help="Questions, drawn by the recipe's seed.")] = 32,
    passages: Annotated[
        tuple[Path, ...], arg(metavar="FILE [FILE ...]", help="Distractors. Default: the question file's own.")
    ] = (),
    model: Model = None,
    out: Annotated[Path, arg(metavar="FOLDER", help="Where qa.json, qa.md and qa.png go.")] = Path("runs/qa"),
    overrides: Overrides = (),
) -> None:
    """Long-text QA: read texts of several lengths with bounded memory, answer, compare with answering without it.

    Example: memtrain qa demo-cpu hotpot_dev.json --lengths 1000 4000 16000 --number 64 --model runs/demo/model
    """
    settings = load_recipe(recipe, flat(overrides))
    from memtrain import long_qa

    long_qa.run(settings.with_model(name=model or settings.model.name), questions, passages, lengths, number, out)
