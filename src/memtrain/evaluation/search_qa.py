"""Search QA: the searcher on tasks of one or several questions, beside what answers without its turns.

Controls on the same tasks: ``closed book`` (no results), ``one search`` (each question is searched for as it stands,
and what comes back answers in one call). MEM1 (arXiv 2506.15841) and MemTrain (arXiv 2606.03197) report the mean exact
match over the questions of a task; so do we, with the task as the unit of the intervals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from memtrain.engines.base import Engine
from memtrain.evaluation.qa_metrics import GAIN, METRICS, scores
from memtrain.evaluation.statistics import Estimate, clustered
from memtrain.memory.prompts import NO_MEMORY
from memtrain.memory.search_prompts import SearchPrompts
from memtrain.recipe import Recipe
from memtrain.search.base import Retriever
from memtrain.tasks.likelihood import answer_logprobs
from memtrain.tasks.search_qa import SearchTask, episode, separate

SEARCHER, ONE_SEARCH, CLOSED = "searcher", "one search", "closed book"
KINDS = (SEARCHER, ONE_SEARCH, CLOSED)
NO_LENGTH = 0
"""Records and summaries have the layout of ``long_qa``; nothing here has a length."""
ABOUT = ("searches", "failed_searches", "turns", "lost_turns")
"""What is also known of the searcher's episodes: counts an episode."""
Tick = Callable[[], None]


async def evaluate(
    engine: Engine, retriever: Retriever, tasks: Sequence[SearchTask], recipe: Recipe, tick: Tick = lambda: None
) -> list[dict[str, Any]]:
    """One record a question and kind, with the reply and its scores; ``tick`` after every task.

    ``document`` names the task; ``gain`` is of its answers together: nats by which what was found and remembered makes
    their box likelier than the questions alone do.

    Everything runs at once: batching is the engine's business. Sampling as ``recipe.eval`` says. A search that fails
    leaves its episode to answer without it, and is counted. Raises :class:`UserError` where a turn does not fit the
    model's window.
    """
    run = _Run(engine, retriever, recipe)
    run.prompts.check_window(engine.context_tokens, [task.questions for task in tasks])
    parts = await asyncio.gather(*(run.task(task, tick) for task in tasks))
    return [record for part in parts for record in part]


def summary(records: Sequence[dict[str, Any]], resamples: int, seed: int) -> dict[str, dict[int, dict[str, Estimate]]]:
    """``{kind: {0: {metric: mean, ci95, n}}}``: intervals by bootstrap over tasks; questions of a task are averaged."""
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    for kind in KINDS:
        rows = [record for record in records if record["kind"] == kind]
        if rows:
            names = (*METRICS, "answered", GAIN, *(ABOUT if kind == SEARCHER else ()))
            found[kind] = {NO_LENGTH: {name: clustered(rows, name, resamples, seed) for name in names}}
    return found


def failed_share(records: Sequence[dict[str, Any]]) -> float:
    """Share of the searcher's searches that went unanswered; 0 where it made none."""
    episodes = {record["document"]: record for record in records if record["kind"] == SEARCHER}
    searches = sum(record["searches"] for record in episodes.values())
    return sum(record["failed_searches"] for record in episodes.values()) / searches if searches else 0.0


class _Run:
    """What all coroutines of one evaluation share."""

    def __init__(self, engine: Engine, retriever: Retriever, recipe: Recipe) -> None:
        self.engine, self.retriever, self.recipe = engine, retriever, recipe
        self.prompts = SearchPrompts(engine.tokenizer, recipe.memory, recipe.search)
        self.reply = self.prompts.sampling(recipe.eval.temperature, last=True)

    async def task(self, task: SearchTask, tick: Tick) -> list[dict[str, Any]]:
        parts = await asyncio.gather(self._searcher(task), self._one_search(task), self._closed_book(task))
        tick()
        known = parts[-1][0]["logprob"]
        return [record | {GAIN: record["logprob"] - known} for part in parts for record in part]

    async def _searcher(self, task: SearchTask) -> list[dict[str, Any]]:
        temperature = self.recipe.eval.temperature
        done = await episode(self.engine, self.prompts, self.retriever, task, 0, temperature=temperature)
        memory = done.trajectory.memories[-1]
        about = {
            "searches": len(done.searches),
            "failed_searches": done.failed,
            "turns": len(done.trajectory.turns),
            "lost_turns": done.lost,
            "queries": [search.query for search in done.searches],
            "memory": memory,
        }
        logprob = await self._logprob(self.prompts.last_turn(task.questions, done.shown[-1], memory), task)
        return [record | about for record in _records(SEARCHER, task, done.trajectory.answer, logprob)]

    async def _one_search(self, task: SearchTask) -> list[dict[str, Any]]:
        """Every question as its own query; the results share the room of one turn's."""
        outcomes = await self.retriever.search(task.questions, self.recipe.search.topk)
        room = max(1, self.recipe.search.result_tokens // len(task.questions))
        pairs = zip(task.questions, outcomes, strict=True)
        results = "\n\n".join(self.prompts.shown(question, found, room) for question, found in pairs)
        return await self._control(ONE_SEARCH, task, results)

    async def _closed_book(self, task: SearchTask) -> list[dict[str, Any]]:
        return await self._control(CLOSED, task, "")

    async def _control(self, kind: str, task: SearchTask, results: str) -> list[dict[str, Any]]:
        """The last turn at once."""
        prompt = self.prompts.last_turn(task.questions, results, NO_MEMORY)
        [[completion], logprob] = await asyncio.gather(
            self.engine.sample(prompt, self.reply), self._logprob(prompt, task)
        )
        return _records(kind, task, self.prompts.text_of(completion.token_ids), logprob)

    async def _logprob(self, prompt: list[int], task: SearchTask) -> float:
        logprob, _ = await answer_logprobs(self.engine, prompt, self.prompts.target(task.answer))
        return logprob


def _records(kind: str, task: SearchTask, reply: str, logprob: float) -> list[dict[str, Any]]:
    replies = separate(reply, len(task.questions))
    return [
        {
            "kind": kind,
            "length": NO_LENGTH,
            "document": task.id,
            "question": question,
            "gold": list(golds),
            "answer": reply,
            "logprob": logprob,
            **scores(said, golds),
        }
        for question, golds, said in zip(task.questions, task.answers, replies, strict=True)
    ]
