"""``memtrain train``: on this process, on workers of Ray Train, or as one of torchrun's processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from memtrain.commands.options import Overrides, RecipeName, flat
from memtrain.errors import UserError
from memtrain.recipe import Recipe, load_recipe


def train(
    recipe: RecipeName,
    overrides: Overrides = (),
    out: Annotated[
        str | None,
        arg(
            metavar="FOLDER",
            help="Where the results go: a folder, on a cluster one that all machines see, or an fsspec URL such as "
            "s3://bucket/run. Default: runs/NAME, NAME from the recipe.",
        ),
    ] = None,
    resume: Annotated[
        FlagCreatePairsOff[bool],
        arg(help="Go on where the run in the folder stopped, to the same numbers; with any number of workers."),
    ] = False,
    dry_run: Annotated[
        FlagCreatePairsOff[bool], arg(help="Print what would run (tokens, memory, time), run one step, keep nothing.")
    ] = False,
    workers: Annotated[
        int | None,
        arg(metavar="N", help="Data-parallel workers, started by Ray Train (extra ray): a GPU each, or a processor."),
    ] = None,
    address: Annotated[
        str | None,
        arg(metavar="ADDRESS", help="Ray cluster for the workers: auto, HOST:PORT or ray://HOST:10001. Default: here."),
    ] = None,
    restarts: Annotated[
        int, arg(metavar="N", help="How often workers that died start again from the last checkpoint; -1: always.")
    ] = 3,
) -> None:
    """Build documents, evaluate, prime, train with GRPO, evaluate again. Writes summary.json and plots.

    Example: memtrain train demo-cpu --dry-run

    Example: memtrain train my.toml --set train.steps=100 train.lr=5e-6 --out runs/mine

    Example: memtrain train my.toml --set train.steps=100 train.lr=5e-6 --out runs/mine --resume

    Example: memtrain train my.toml --workers 8 --address auto --out /shared/mine

    Example: torchrun --nproc-per-node 8 -m memtrain train my.toml --out /shared/mine
    """
    from memtrain import pipeline
    from memtrain.launch import storage

    settings = load_recipe(recipe, flat(overrides))
    together = "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_RANK" in os.environ
    _check(settings, workers, address, together)
    place = out or str(Path("runs") / settings.name)
    if dry_run:
        pipeline.dry_run(settings)
    elif together:
        from memtrain.launch import torchrun

        torchrun.train(settings, place, resume)
    elif workers is not None:
        from memtrain.launch import ray_train

        ray_train.train(settings, place, resume, workers, address, restarts)
    else:
        pipeline.train(settings, storage.run_folder(place), resume)


def _check(recipe: Recipe, workers: int | None, address: str | None, together: bool) -> None:
    if workers is None and address is not None:
        raise UserError("--address needs --workers N: how many workers to start there")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers} but a run needs at least one")
    if together and workers is not None:
        raise UserError("--workers starts workers through Ray, but torchrun has started these already; leave it out")
    if recipe.engine == "tinker" and (together or workers is not None):
        raise UserError(
            'engine = "tinker" trains on a server, which has workers of its own; leave out --workers and torchrun'
        )
