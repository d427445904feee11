"""``memtrain build``: training documents from unlabelled text, in this process or by many workers."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from memtrain.commands.options import Out, Overrides, RecipeName, flat
from memtrain.errors import UserError
from memtrain.recipe import load_recipe


def build(
    recipe: RecipeName,
    overrides: Overrides = (),
    out: Out = None,
    workers: Annotated[
        int | None,
        arg(metavar="N", help="Read the corpus by N workers and keep it on the disk (extra scale); goes on if killed."),
    ] = None,
    executor: Annotated[
        Literal["local", "slurm", "ray"], arg(help="Where workers run: datatrove's executors. Default: processes here.")
    ] = "local",
    executor_option: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(metavar="NAME=VALUE", help="More of the executor's arguments, e.g. partition=cpu time=02:00:00."),
    ] = (),
    work_folder: Annotated[
        Path | None,
        arg(metavar="FOLDER", help="Where workers keep what they have read. Default: work in the results' folder."),
    ] = None,
) -> None:
    """Make training documents from unlabelled text, and print what they are like.

    Example: memtrain build demo-cpu --set corpus=my-texts/ documents.train=1000 --out docs/my-texts

    Example: memtrain build my.toml --workers 16 --set corpus.max_passages=50_000_000
    """
    options = _options(list(chain.from_iterable(executor_option)))
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers} but a build needs at least one")
    if workers is None and (executor != "local" or options or work_folder is not None):
        raise UserError("--executor, --executor-option and --work-folder need --workers N")
    settings = load_recipe(recipe, flat(overrides))
    from memtrain import pipeline

    pipeline.build(settings, out, workers=workers, executor=executor, executor_options=options, work_folder=work_folder)


def _options(pairs: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` -> value, a number where it is one."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--executor-option {pair!r} is not NAME=VALUE; for example partition=cpu")
        found[name] = int(value) if value.isdigit() else value
    return found
