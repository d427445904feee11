"""Long-text QA: the reader on haystacks of several lengths, beside what answers without it.

Controls on the same questions: ``closed book`` (no text), ``full context`` (the whole text, where it fits the model's
window), ``bm25`` (the paragraphs that BM25 ranks first, as many as fit a chunk). MemAgent (arXiv 2507.02259) and
MemTrain (arXiv 2606.03197) report the reader by length; their tables have no controls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.corpus.counting import CountTokens
from memtrain.corpus.neighbours import words
from memtrain.engines.base import Engine
from memtrain.evaluation.qa_metrics import METRICS, scores
from memtrain.evaluation.statistics import Estimate, clustered
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.memory.reader import answer, read, split_chunks
from memtrain.qa.haystack import Haystack
from memtrain.recipe import Recipe
from memtrain.types import SamplingParams

READER, CLOSED, FULL, BM25 = "reader", "closed book", "full context", "bm25"
KINDS = (READER, BM25, FULL, CLOSED)
NO_LENGTH = 0
"""Length of what sees no text."""
Tick = Callable[[], None]


@dataclass(frozen=True)
class Asked:
    """A haystack under the length that was asked for, which it fills nearly."""

    length: int
    haystack: Haystack


async def evaluate(
    engine: Engine, asked: Sequence[Asked], recipe: Recipe, count_tokens: CountTokens, tick: Tick = lambda: None
) -> list[dict[str, Any]]:
    """One record a question, length and kind, with the reply and its scores; ``tick`` after every haystack.

    Everything runs at once: batching is the engine's business. Sampling as ``recipe.eval`` says.
    """
    run = _Run(engine, recipe, count_tokens)
    first = {one.haystack.question.id: one for one in asked}
    parts = await asyncio.gather(
        *(run.closed_book(one.haystack) for one in first.values()), *(run.haystack(one, tick) for one in asked)
    )
    return [record for part in parts for record in part]


def summary(records: Sequence[dict[str, Any]], resamples: int, seed: int) -> dict[str, dict[int, dict[str, Estimate]]]:
    """``{kind: {length: {metric: mean, ci95, n}}}``: intervals by bootstrap over questions."""
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    for kind in KINDS:
        for length in sorted({record["length"] for record in records if record["kind"] == kind}):
            rows = [record for record in records if (record["kind"], record["length"]) == (kind, length)]
            found.setdefault(kind, {})[length] = {
                metric: clustered(rows, metric, resamples, seed) for metric in (*METRICS, "answered")
            }
    return found


class _Run:
    """What all coroutines of one evaluation share."""

    def __init__(self, engine: Engine, recipe: Recipe, count_tokens: CountTokens) -> None:
        self.engine, self.count_tokens = engine, count_tokens
        self.memory = recipe.memory.model_copy(update={"max_chunks": 1 << 30})  # a length is what was asked for
        self.prompts = Prompts(engine.tokenizer, recipe.memory)
        self.write = self._params(recipe, recipe.memory.memory_tokens)
        self.reply = self._params(recipe, recipe.memory.answer_tokens)

    def _params(self, recipe: Recipe, max_tokens: int) -> SamplingParams:
        return SamplingParams(max_tokens, temperature=recipe.eval.temperature, stop=self.prompts.stop)

    async def closed_book(self, haystack: Haystack) -> list[dict[str, Any]]:
        prompt = self.prompts.answer(haystack.question.text, NO_MEMORY)
        return [self._record(CLOSED, NO_LENGTH, haystack, await self._ask(prompt))]

    async def haystack(self, asked: Asked, tick: Tick) -> list[dict[str, Any]]:
        """The reader and the controls that see the text."""
        haystack = asked.haystack
        texts = {BM25: self._best_paragraphs(haystack), FULL: haystack.text}
        prompts = {kind: self.prompts.full_context(haystack.question.text, text) for kind, text in texts.items()}
        room = self.engine.context_tokens - self.reply.max_tokens
        controls = {kind: prompt for kind, prompt in prompts.items() if len(prompt) <= room}
        found, *replies = await asyncio.gather(self._read(asked), *(self._ask(prompt) for prompt in controls.values()))
        tick()
        return [
            found,
            *(self._record(kind, asked.length, haystack, reply) for kind, reply in zip(controls, replies, strict=True)),
        ]

    async def _read(self, asked: Asked) -> dict[str, Any]:
        question = asked.haystack.question
        chunks = split_chunks(asked.haystack.text, self.engine.tokenizer, self.memory)
        trajectory = await read(
            self.engine, self.prompts, question.text, chunks, self.write, document_id=question.id, index=0
        )
        turn = await answer(self.engine, self.prompts, question.text, trajectory, self.reply)
        told = {"memory": trajectory.memories[-1], "chunks": len(chunks)}
        return self._record(READER, asked.length, asked.haystack, turn.text) | told

    async def _ask(self, prompt: list[int]) -> str:
        [completion] = await self.engine.sample(prompt, self.reply)
        return self.prompts.text_of(completion.token_ids)

    def _best_paragraphs(self, haystack: Haystack) -> str:
        """Paragraphs by BM25 against the question, best first, as many as fit a chunk; at least one."""
        import bm25s

        index = bm25s.BM25(backend="numpy")
        paragraphs = haystack.paragraphs
        index.index([words(paragraph) or ["-"] for paragraph in paragraphs], show_progress=False)
        ranks = index.get_scores(words(haystack.question.text) or ["-"])
        order = sorted(range(len(paragraphs)), key=lambda i: (-ranks[i], i))
        chosen, room = list[str](), self.memory.chunk_tokens
        for i in order:
            (length,) = self.count_tokens([paragraphs[i]])
            if chosen and length > room:
                break
            chosen.append(paragraphs[i])
            room -= length
        return "\n\n".join(chosen)

    def _record(self, kind: str, length: int, haystack: Haystack, reply: str) -> dict[str, Any]:
        question = haystack.question
        return {
            "kind": kind,
            "length": length,
            "document": question.id,
            "question": question.text,
            "gold": list(question.answers),
            "answer": reply,
            **scores(reply, question.answers),
        }
