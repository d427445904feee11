"""One of the processes that ``torchrun`` started: ``torchrun --nproc-per-node 2 -m memtrain train RECIPE``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from memtrain.engines.workers import Workers
from memtrain.launch.screens import SilentScreen
from memtrain.launch.storage import run_folder
from memtrain.pipeline import print_summary, train_in
from memtrain.recipe import Recipe
from memtrain.report.console import Screen


def train(recipe: Recipe, out: str, resume: bool) -> None:
    """All stages, as the worker that torchrun's environment says this is. After a restart by torchrun it resumes.

    Raises :class:`UserError` as ``pipeline.train`` does, on all workers alike.
    """
    resume = resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    with process_group(recipe) as (workers, device):
        run = run_folder(out, workers)
        placed = recipe.with_model(device=device)
        title = f"memtrain {recipe.name} → {out} ({workers.size} workers)"
        with Screen(title) if workers.rank == 0 else SilentScreen() as screen:
            train_in(run, placed, resume, screen, workers)
        if workers.rank == 0:
            print_summary(run.path)


@contextmanager
def process_group(recipe: Recipe) -> Iterator[tuple[Workers, str]]:
    """The process group of torchrun's environment, and this worker's device."""
    import torch
    import torch.distributed as dist

    from memtrain.engines.torch.process_group import PATIENCE, ProcessGroup

    on_gpu = recipe.model.device.startswith("cuda") or (recipe.model.device == "auto" and torch.cuda.is_available())
    device = recipe.model.device
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    workers = ProcessGroup()
    try:
        yield workers, device
    finally:
        workers.close()
        if dist.is_initialized():
            dist.destroy_process_group()
