"""``memtrain lm-eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from memtrain.commands.options import Model, Overrides, RecipeName, flat
from memtrain.recipe import load_recipe


def lm_eval(
    recipe: RecipeName,
    tasks: Annotated[
        tuple[str, ...], arg(metavar="TASK [TASK ...]", help="Tasks, groups or tags of lm-eval; patterns; .yaml files.")
    ],
    model: Model = None,
    limit: Annotated[int | None, arg(metavar="N", help="Only the first N documents of each task.")] = None,
    out: Annotated[Path, arg(metavar="FOLDER", help="Where lm-eval.json, lm-eval.md and samples.jsonl go.")] = Path(
        "runs/lm-eval"
    ),
    include_path: Annotated[Path | None, arg(metavar="FOLDER", help="Folder with task files of your own.")] = None,
    num_fewshot: Annotated[
        int | None, arg(metavar="N", help="Examples before each prompt. Default: the task's.")
    ] = None,
    metadata: Annotated[
        str, arg(metavar="JSON", help="Settings of the tasks, for example '{\"max_seq_lengths\": [4096, 16384]}'.")
    ] = "{}",
    question_tokens: Annotated[
        int | None, arg(metavar="N", help="Most tokens of a prompt's end that are the question. Default: 512.")
    ] = None,
    head_tokens: Annotated[
        int | None,
        arg(metavar="N", help="Most tokens of a prompt's beginning that join the question. Default: 128; 0: none."),
    ] = None,
    question_pattern: Annotated[
        str | None,
        arg(metavar="REGEX", help="The question begins at its last match. Default: how known benchmarks begin it."),
    ] = None,
    overrides: Overrides = (),
) -> None:
    """Tasks of lm-eval (RULER, LongBench, BABILong, InfiniteBench, your own), read with bounded memory.

    Example: memtrain lm-eval demo-cpu --tasks ruler_vt niah_single_1 --model runs/demo/model --limit 8
    """
    settings = load_recipe(recipe, flat(overrides))
    split = {"question_tokens": question_tokens, "head_tokens": head_tokens, "question_pattern": question_pattern}
    from memtrain import lm_eval_run

    lm_eval_run.run(
        settings.with_model(name=model or settings.model.name),
        tasks,
        out,
        limit,
        include_path,
        num_fewshot,
        metadata,
        split,
    )
