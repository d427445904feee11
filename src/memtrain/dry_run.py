"""``memtrain train --dry-run``: what a run would cost, from its settings and from one real step of each stage."""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from memtrain.corpus import documents as corpus_documents
from memtrain.memory.reader import split_chunks
from memtrain.recipe import Recipe
from memtrain.report.console import Screen, duration
from memtrain.rl.checkpoint import RunFolder
from memtrain.rl.trainer import Trainer

GIB = 2**30


def dry_run(recipe: Recipe) -> None:
    """Print sequences, tokens, memory and time of the run, after one step of each stage; keeps nothing."""
    from memtrain.pipeline import load_engine

    few = recipe.documents.model_copy(
        update={"train": max(recipe.train.documents_per_step, recipe.priming.documents_per_step), "held_out": 1}
    )
    small = recipe.model_copy(update={"documents": few, "log": recipe.log.model_copy(update={"samples": 0})})
    with tempfile.TemporaryDirectory() as temporary, Screen(f"memtrain dry run {recipe.name}") as screen:
        run = RunFolder(Path(temporary))
        engine = load_engine(small, screen, training=True)
        screen.stage("documents", 0)
        corpus_documents.build(small, run.path / "documents", progress=screen.inner)
        documents = corpus_documents.load(run.path / "documents", "train")
        lengths = [len(split_chunks(d.text, engine.tokenizer, recipe.memory)) for d in documents]
        chunks = sum(lengths) / len(lengths)
        measured = asyncio.run(_one_step_each(Trainer(engine, small, documents, run, screen), screen))
    _print(recipe, chunks, weights_gib(engine, recipe), measured)


async def _one_step_each(trainer: Trainer, screen: Screen) -> dict[str, dict[str, float]]:
    found = {}
    recipe = trainer.recipe
    if recipe.priming.steps:
        screen.stage("one priming step", 1)
        documents = trainer.batch("priming", 1, recipe.priming.documents_per_step)
        rows = [row for document in documents for row in trainer.pairs_of(document, 1)]
        found["priming"] = await _timed(trainer.supervise(rows, recipe.priming.lr))
    if recipe.train.steps:
        screen.stage("one GRPO step", 1)
        found["grpo"] = await _timed(trainer.grpo_step(1))
    return found


async def _timed(step: Any) -> dict[str, float]:
    began = time.perf_counter()
    metrics = await step
    return metrics | {"seconds": time.perf_counter() - began}


def weights_gib(engine: Any, recipe: Recipe) -> dict[str, float]:
    """GiB of what stays in memory all along: weights, float32 masters, gradients and moments, reference."""
    parameters = list(engine.loaded.model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    copies = sum(p.numel() for p in parameters if p.requires_grad and p.element_size() < 4)
    reference = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad) if recipe.train.kl_coef else 0
    return {
        "weights": weights / GIB,
        "optimiser (masters, gradients, two moments)": (4 * copies + 12 * trained) / GIB,
        "reference": reference / GIB,
    }


def _print(recipe: Recipe, chunks: float, memory: dict[str, float], measured: dict[str, dict[str, float]]) -> None:
    train = recipe.train
    groups = train.documents_per_step
    writes = groups * train.group_size * chunks
    table = Table("what", "figure", title=f"{recipe.name}: one step of each stage was run, nothing was kept")
    table.add_row("chunks a document, mean of this step's", f"{chunks:.1f}")
    table.add_row("GRPO: trajectories a step", f"{groups} documents x {train.group_size}")
    room = writes * recipe.memory.memory_tokens
    table.add_row("GRPO: memory writes a step", f"{writes:,.0f}, at most {room:,.0f} new tokens")
    if "grpo" in measured:
        step = measured["grpo"]
        table.add_row("GRPO: training rows a step", f"{step.get('rows', 0):,.0f}")
        separate, packed = step.get("tokens_separate", 0.0), step.get("tokens_packed", 0.0)
        tokens = f"{separate:,.0f} as separate rows, {packed:,.0f} with shared prefixes"
        table.add_row("GRPO: trained tokens a step", tokens)
    for name, size in memory.items():
        table.add_row(f"memory: {name}", f"{size:.2f} GiB")
    table.add_row("memory: peak seen", peak())
    for stage, steps in (("priming", recipe.priming.steps), ("grpo", train.steps)):
        if stage in measured:
            seconds = measured[stage]["seconds"]
            table.add_row(f"time: {stage}", f"{seconds:.1f} s a step x {steps} = {duration(seconds * steps)}")
    Console().print(table)


def peak() -> str:
    """Largest memory use of this process, on the GPU where one is used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / GIB:.2f} GiB on the GPU"
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB:.2f} GiB of the process"
