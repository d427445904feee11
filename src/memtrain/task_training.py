"""``memtrain task``: GRPO on questions, from any model: what MemTrain is the stage before.

Long-text QA trains the reader on texts around gold paragraphs (MemAgent, arXiv 2507.02259), search QA the searcher.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.corpus.counting import token_counter
from memtrain.errors import UserError
from memtrain.evaluation import long_qa, search_qa
from memtrain.evaluation.long_qa import Asked, draw_texts
from memtrain.pipeline import load_engine
from memtrain.qa.haystack import HaystackMaker
from memtrain.qa.split import QuestionSplit, draw, load_split
from memtrain.recipe import Recipe
from memtrain.report.console import Screen
from memtrain.report.plots import learning_curves, read_metrics
from memtrain.report.summary import machine, versions
from memtrain.report.trackers import Tracker
from memtrain.rl.checkpoint import PartialFolder, RunFolder, write_atomically
from memtrain.rl.experience import collect
from memtrain.rl.search_experience import collector
from memtrain.rl.trainer import Collect, Trainer
from memtrain.search.base import Retriever
from memtrain.search_qa import retriever_of, tasks_of
from memtrain.settings import PrimingSettings, QaSettings
from memtrain.tasks.long_qa import QuestionDocuments


def task_recipe(recipe: Recipe) -> Recipe:
    """The recipe as the trainer sees the task stage: ``qa.train`` and ``qa.reward`` in the places of MemTrain's."""
    return recipe.model_copy(
        update={
            "train": recipe.qa.train,
            # Said once: where a run stands may not depend on how many steps it was to have.
            "qa": recipe.qa.model_copy(update={"train": QaSettings().train}),
            "tasks": recipe.tasks.model_copy(update={"mode": "end-to-end", "reconstruction_reward": recipe.qa.reward}),
            "priming": PrimingSettings(),
        }
    )


def run(recipe: Recipe, out: Path, resume: bool) -> Path:
    """Train ``recipe.model`` on the questions of ``[qa]``; returns the folder of the model.

    Writes metrics.jsonl, samples, checkpoints, curves.png, summary.json and ``model/`` to ``out``; goes on where an
    earlier run stopped, if ``resume``. Raises :class:`UserError` for a folder of another run.
    """
    recipe = task_recipe(recipe)
    folder = RunFolder(out)
    with folder.locked():
        folder.check(recipe, resume)
        with Screen(f"memtrain task {recipe.name} → {out}") as screen:
            engine = load_engine(recipe, screen, training=True)
            screen.stage("questions", 0)
            split = load_split(recipe.qa, need_gold=recipe.qa.kind == "long")
            documents: Sequence[Any]
            retriever: Retriever | None = None
            how: Collect = collect
            if recipe.qa.kind == "long":
                documents = training_texts(recipe, split, token_counter(engine.tokenizer))
            else:
                documents = tasks_of(split.train, recipe, recipe.seed)
                retriever = open_retriever(recipe, split, screen)
                how = collector(retriever)
            for reason, count in split.left_out.items():
                if count:
                    screen.note(f"{recipe.qa.questions}: {count} left out: {reason}")
            folder.claim(recipe)
            try:
                asyncio.run(_train(recipe, folder, engine, documents, how, screen))
            finally:
                if retriever is not None:
                    retriever.close()
    Console().print(Text(f"model: {out / 'model'}   numbers: {out / 'summary.json'}   curves: {out / 'curves.png'}"))
    return out / "model"


def training_texts(recipe: Recipe, split: QuestionSplit, count: Any) -> QuestionDocuments:
    """The task stage's documents, made when they are read. Raises :class:`UserError` where none can be made."""
    tokens = recipe.qa.train_tokens
    maker = HaystackMaker(split.train_pool(), count)
    usable = [question for question in split.train if maker.needs(question) <= tokens]
    if not usable:
        raise UserError(
            f"the gold paragraphs of all {len(split.train)} training questions are longer than {tokens} tokens; raise "
            f"qa.train_tokens to {min(map(maker.needs, split.train))} or more"
        )
    split.left_out[f"gold paragraphs longer than qa.train_tokens ({tokens})"] += len(split.train) - len(usable)
    documents = QuestionDocuments(usable, maker, tokens, recipe.seed)
    _ = documents[0]  # shows at once what would stop the run later: a pool that is too small
    return documents


def evaluation_texts(recipe: Recipe, split: QuestionSplit, count: Any, screen: Screen) -> list[Asked]:
    """``qa.number`` questions, each at every length. They depend on the data alone, not on the recipe's seed, so that
    rows of a comparison answer the same ones."""
    settings = recipe.qa
    lengths = sorted(settings.lengths)
    screen.stage("texts", min(settings.number, len(split.evaluation)) * len(lengths))
    maker = HaystackMaker(split.evaluation_pool(), count)
    asked, too_long = draw_texts(split.evaluation, maker, lengths, settings.number, 0, screen.advance)
    if too_long:
        screen.note(f"{too_long} evaluation questions left out: gold paragraphs longer than {lengths[0]} tokens")
    return asked


def measure(recipe: Recipe, label: str) -> list[dict[str, Any]]:
    """Ask ``recipe.model`` the evaluation questions of ``[qa]``, with the controls; records of ``evaluation``."""
    with Screen(f"memtrain {recipe.name}: {label}") as screen:
        engine = load_engine(recipe, screen)
        split = load_split(recipe.qa, need_gold=recipe.qa.kind == "long")
        if recipe.qa.kind == "long":
            count = token_counter(engine.tokenizer)
            asked = evaluation_texts(recipe, split, count, screen)
            screen.stage(f"asking {label}", len(asked))
            return asyncio.run(long_qa.evaluate(engine, asked, recipe, count, screen.advance))
        tasks = tasks_of(draw(split.evaluation, recipe.qa.number, 0), recipe, 0)
        retriever = open_retriever(recipe, split, screen)
        screen.stage(f"asking {label}", len(tasks))
        try:
            records = asyncio.run(search_qa.evaluate(engine, retriever, tasks, recipe, screen.advance))
        finally:
            retriever.close()
        if (failed := search_qa.failed_share(records)) > recipe.search.max_failed_share:
            raise UserError(
                f"{failed:.0%} of the searches of {label} failed at {retriever.name}: its score would say nothing; "
                "start the search server again and run the same command, or raise search.max_failed_share"
            )
        return records


def open_retriever(recipe: Recipe, split: QuestionSplit, screen: Screen) -> Retriever:
    """The recipe's search engine, known to answer. Raises :class:`UserError` where it does not."""
    screen.stage("search index", 0)
    retriever = retriever_of(recipe, [] if recipe.search.url else split.pool)
    asyncio.run(retriever.check())
    screen.note(f"searching {retriever.name}")
    return retriever


async def _train(
    recipe: Recipe, folder: RunFolder, engine: Any, documents: Sequence[Any], collect: Collect, screen: Screen
) -> None:
    position = folder.latest()
    folder.cut_metrics(position)
    if position is not None:
        screen.note(f"resuming after step {position.step}")
        await engine.load(folder.place(position))
    tracker = Tracker(recipe.log.tracker, recipe.log.project, recipe.name, recipe.model_dump(), folder.path)
    trainer = Trainer(
        engine,
        recipe,
        documents,
        folder,
        screen,
        lambda stage, step, metrics: tracker.log(step, {f"task/{name}": value for name, value in metrics.items()}),
        collector=collect,
    )
    await trainer.train(position.step if position else 0)
    screen.stage("writing the model", 0)
    async with PartialFolder(folder.path / "model") as part:
        await engine.export(part)
    rows = read_metrics(folder.metrics_file)
    summary = {
        "recipe": recipe.name,
        "fingerprint": recipe.fingerprint(),
        "seed": recipe.seed,
        "model": recipe.model.name,
        "steps": len(rows),
        "seconds": {"grpo": round(sum(row["seconds"] for row in rows), 1)},
        "questions": len(documents),
        "machine": machine(),
        "versions": versions(),
    }
    write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1))
    learning_curves(folder.metrics_file, folder.path / "curves.png")
    tracker.close()
