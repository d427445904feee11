"""Label-free suites on an engine: the reader on generated texts, beside what answers without it.

The controls are those of long-text QA: ``closed book`` (no text), ``full context`` (the whole text, where it fits the
model's window), ``bm25`` (the paragraphs that BM25 ranks first for the question, as many as fit a chunk).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from memtrain.corpus.counting import CountTokens
from memtrain.engines.base import Engine
from memtrain.evaluation.after_reading import AFTER, NEEDLES, RECALL, Exam, examine
from memtrain.evaluation.long_qa import BM25, CLOSED, FULL, NO_LENGTH, READER, Asker, Tick
from memtrain.evaluation.ruler.sample import Sample
from memtrain.evaluation.ruler.scoring import METRICS, scores
from memtrain.evaluation.ruler.tasks import TASKS
from memtrain.evaluation.statistics import Estimate, clustered, paired_difference
from memtrain.memory.prompts import NO_MEMORY
from memtrain.memory.reader import answer
from memtrain.recipe import Recipe

KINDS = (READER, AFTER, BM25, FULL, CLOSED)
"""What answers, in the order of the report."""
AVERAGE = "average"
"""Stands for all RULER tasks together, where there are several."""
REPLY_TOKENS = 128
"""RULER's room for a reply: four uuids must fit."""

Summary = dict[str, dict[str, dict[int, dict[str, Estimate]]]]


def with_room(recipe: Recipe) -> Recipe:
    """The recipe with at least :data:`REPLY_TOKENS` for an answer."""
    tokens = max(recipe.memory.answer_tokens, REPLY_TOKENS)
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"answer_tokens": tokens})})


async def evaluate(
    engine: Engine,
    samples: Sequence[Sample],
    exams: Sequence[Exam],
    recipe: Recipe,
    count_tokens: CountTokens,
    tick: Tick = lambda: None,
) -> list[dict[str, Any]]:
    """One record a sample (or question of an exam) and kind, with the reply and its scores; ``tick`` after every text.

    Everything runs at once: batching is the engine's business. Sampling as ``recipe.eval`` says. Raises
    :class:`UserError` where a question leaves no room for the reader in the model's window.
    """
    asker = Asker(engine, recipe, count_tokens)
    questions = [sample.question for sample in samples] + [one.text for exam in exams for one in exam.questions]
    asker.prompts.budget(engine.context_tokens, max(questions, key=asker.prompts.count, default=""))
    first = {sample.id: sample for sample in samples}
    parts = await asyncio.gather(
        *(_closed_book(asker, sample) for sample in first.values()),
        *(_sample(asker, sample, tick) for sample in samples),
        *(examine(asker, exam, tick) for exam in exams),
    )
    return [record for part in parts for record in part]


async def _closed_book(asker: Asker, sample: Sample) -> list[dict[str, Any]]:
    reply = await asker.ask(asker.prompts.answer(sample.question, NO_MEMORY))
    return [_record(CLOSED, NO_LENGTH, sample, reply)]


async def _sample(asker: Asker, sample: Sample, tick: Tick) -> list[dict[str, Any]]:
    """The reader and the controls that see the text."""
    texts = {BM25: asker.retriever(sample.paragraphs)(sample.question)}
    if sample.n_tokens < asker.engine.context_tokens:
        texts[FULL] = sample.text
    controls = {kind: asker.prompts.full_context(sample.question, text) for kind, text in texts.items()}
    trajectory, replies = await asyncio.gather(
        asker.read(sample.question, asker.chunks(sample.text), sample.id), asker.ask_those_that_fit(controls)
    )
    turn = await answer(asker.engine, asker.prompts, sample.question, trajectory, asker.reply)
    told = {"memory": trajectory.memories[-1], "chunks": len(trajectory.memories) - 1}
    tick()
    return [
        _record(READER, sample.length, sample, turn.text) | told,
        *(_record(kind, sample.length, sample, reply) for kind, reply in replies.items()),
    ]


def _record(kind: str, length: int, sample: Sample, reply: str) -> dict[str, Any]:
    return {
        "task": sample.task,
        "kind": kind,
        "length": length,
        "n_tokens": sample.n_tokens if length else 0,
        "document": sample.id,
        "question": sample.question,
        "depths": [round(needle.offset / len(sample.text), 4) for needle in sample.needles],
        "gold": list(sample.answers),
        "answer": reply,
        **scores(reply, sample.answers),
    }


def summary(records: Sequence[dict[str, Any]], resamples: int, seed: int) -> Summary:
    """``{task: {kind: {length: {metric: mean, ci95, n}}}}``: intervals by bootstrap over texts.

    :data:`AVERAGE` comes last, over all samples of RULER's tasks, where there are two tasks or more.
    """
    tasks: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        tasks.setdefault(record["task"], []).append(record)
    ruler = [name for name in tasks if name in TASKS]
    if len(ruler) > 1:
        tasks[AVERAGE] = [record for name in ruler for record in tasks[name]]
    return {name: _by_kind(rows, resamples, seed) for name, rows in tasks.items()}


def _by_kind(records: Sequence[dict[str, Any]], resamples: int, seed: int) -> dict[str, dict[int, dict[str, Estimate]]]:
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    metrics = [name for name in METRICS if all(name in record for record in records)]
    for kind in KINDS:
        for length in sorted({record["length"] for record in records if record["kind"] == kind}):
            rows = [record for record in records if (record["kind"], record["length"]) == (kind, length)]
            found.setdefault(kind, {})[length] = {name: clustered(rows, name, resamples, seed) for name in metrics}
    return found


def cost_of_not_knowing(
    records: Sequence[dict[str, Any]], resamples: int, seed: int
) -> dict[str, dict[int, dict[str, Estimate]]]:
    """``{task: {length: {metric: difference}}}``: asked after the reading minus known before it, paired by text."""
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    for task in (NEEDLES, RECALL):
        mine = [record for record in records if record["task"] == task]
        for length in sorted({record["length"] for record in mine}):
            rows = [record for record in mine if record["length"] == length]
            before, after = ([row for row in rows if row["kind"] == kind] for kind in (READER, AFTER))
            found.setdefault(task, {})[length] = {
                name: paired_difference(before, after, name, resamples, seed) for name in METRICS if name in rows[0]
            }
    return found
