"""Long-text QA: the reader on haystacks of several lengths, beside what answers without it.

Controls on the same questions: ``closed book`` (no text), ``full context`` (the whole text, where it fits the model's
window), ``bm25`` (the paragraphs that BM25 ranks first, as many as fit a chunk). MemAgent (arXiv 2507.02259) and
MemTrain (arXiv 2606.03197) report the reader by length; their tables have no controls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.corpus.counting import CountTokens
from memtrain.corpus.neighbours import words
from memtrain.engines.base import Engine
from memtrain.errors import UserError
from memtrain.evaluation.qa_metrics import GAIN, KEPT, METRICS, contains, scores
from memtrain.evaluation.statistics import Estimate, clustered
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.memory.reader import answer, read, split_chunks
from memtrain.qa.haystack import Haystack, HaystackMaker
from memtrain.qa.questions import Question
from memtrain.qa.split import draw
from memtrain.recipe import Recipe
from memtrain.tasks.likelihood import answer_logprobs
from memtrain.types import SamplingParams, Trajectory

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


def draw_texts(
    questions: Sequence[Question], maker: HaystackMaker, lengths: Sequence[int], number: int, seed: int, tick: Tick
) -> tuple[list[Asked], int]:
    """Up to ``number`` questions, each at every length, and how many were left out because their gold paragraphs are
    longer than the shortest length: every length asks the same questions. ``tick`` after every text.

    Raises :class:`UserError` where none fits, or the pool cannot fill a length.
    """
    shortest = min(lengths)
    fitting = [question for question in questions if maker.needs(question) <= shortest]
    if not fitting:
        raise UserError(
            f"the gold paragraphs of all {len(questions)} questions are longer than {shortest} tokens, the shortest "
            f"length asked for; set lengths of at least {min(map(maker.needs, questions))}"
        )
    asked = []
    for question in draw(fitting, number, seed):
        for length in sorted(lengths):
            asked.append(Asked(length, maker.make(question, length, seed)))
            tick()
    return asked, len(questions) - len(fitting)


async def evaluate(
    engine: Engine, asked: Sequence[Asked], recipe: Recipe, count_tokens: CountTokens, tick: Tick = lambda: None
) -> list[dict[str, Any]]:
    """One record a question, length and kind, with the reply and its scores; ``tick`` after every haystack.

    Everything runs at once: batching is the engine's business. Sampling as ``recipe.eval`` says.
    """
    asker = Asker(engine, recipe, count_tokens)
    first = {one.haystack.question.id: one.haystack for one in asked}
    closed = await asyncio.gather(*(_closed_book(asker, haystack) for haystack in first.values()))
    known = {record["document"]: record["logprob"] for record in closed}
    parts = await asyncio.gather(*(_haystack(asker, one, tick) for one in asked))
    found = [record for part in parts for record in part]
    return [*closed, *(record | {GAIN: record["logprob"] - known[record["document"]]} for record in found)]


def summary(records: Sequence[dict[str, Any]], resamples: int, seed: int) -> dict[str, dict[int, dict[str, Estimate]]]:
    """``{kind: {length: {metric: mean, ci95, n}}}``: intervals by bootstrap over questions."""
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    for kind in KINDS:
        for length in sorted({record["length"] for record in records if record["kind"] == kind}):
            rows = [record for record in records if (record["kind"], record["length"]) == (kind, length)]
            found.setdefault(kind, {})[length] = {
                metric: clustered(rows, metric, resamples, seed) for metric in (*METRICS, "answered", KEPT, GAIN)
            }
    return found


class Asker:
    """One model with its prompts and limits: what reads, answers and retrieves in every evaluation of long texts."""

    def __init__(self, engine: Engine, recipe: Recipe, count_tokens: CountTokens) -> None:
        self.engine, self.count_tokens = engine, count_tokens
        self.memory = recipe.memory.model_copy(update={"max_chunks": 1 << 30})  # a length is what was asked for
        self.prompts = Prompts(engine.tokenizer, recipe.memory)
        self.write = self._params(recipe, recipe.memory.memory_tokens)
        self.reply = self._params(recipe, recipe.memory.answer_tokens)

    def _params(self, recipe: Recipe, max_tokens: int) -> SamplingParams:
        return SamplingParams(max_tokens, temperature=recipe.eval.temperature, stop=self.prompts.stop)

    def chunks(self, text: str) -> list[str]:
        """The whole text, however long, in chunks as the recipe cuts them."""
        return split_chunks(text, self.engine.tokenizer, self.memory)

    async def read(self, question: str, chunks: Sequence[str], document_id: str) -> Trajectory:
        """All chunks in order, with this question in mind."""
        return await read(self.engine, self.prompts, question, chunks, self.write, document_id=document_id, index=0)

    async def ask(self, prompt: list[int]) -> str:
        """One reply as text."""
        [completion] = await self.engine.sample(prompt, self.reply)
        return self.prompts.text_of(completion.token_ids)

    async def logprob(self, prompt: list[int], golds: Sequence[str]) -> float:
        """Log-likelihood of the first accepted answer after a prompt, in nats."""
        logprob, _ = await answer_logprobs(self.engine, prompt, self.prompts.target(golds[0]))
        return logprob

    async def ask_those_that_fit(self, prompts: Mapping[str, list[int]]) -> dict[str, str]:
        """Replies under the prompts' names; what leaves no room for a reply in the model's window is left out."""
        room = self.engine.context_tokens - self.reply.max_tokens
        fitting = {name: prompt for name, prompt in prompts.items() if len(prompt) <= room}
        replies = await asyncio.gather(*map(self.ask, fitting.values()))
        return dict(zip(fitting, replies, strict=True))

    def retriever(self, paragraphs: Sequence[str]) -> Callable[[str], str]:
        """Query -> paragraphs by BM25 against it, best first, as many as fit a chunk; at least one."""
        import bm25s

        index = bm25s.BM25(backend="numpy")
        index.index([words(paragraph) or ["-"] for paragraph in paragraphs], show_progress=False)

        def best(query: str) -> str:
            ranks = index.get_scores(words(query) or ["-"])
            chosen, room = list[str](), self.memory.chunk_tokens
            for i in sorted(range(len(paragraphs)), key=lambda i: (-ranks[i], i)):
                (length,) = self.count_tokens([paragraphs[i]])
                if chosen and length > room:
                    break
                chosen.append(paragraphs[i])
                room -= length
            return "\n\n".join(chosen)

        return best


async def _closed_book(asker: Asker, haystack: Haystack) -> dict[str, Any]:
    question = haystack.question
    prompt = asker.prompts.answer(question.text, NO_MEMORY)
    reply, logprob = await asyncio.gather(asker.ask(prompt), asker.logprob(prompt, question.answers))
    return _record(CLOSED, NO_LENGTH, haystack, reply, logprob)


async def _haystack(asker: Asker, asked: Asked, tick: Tick) -> list[dict[str, Any]]:
    """The reader and the controls that see the text."""
    haystack, question = asked.haystack, asked.haystack.question
    texts = {BM25: asker.retriever(haystack.paragraphs)(question.text), FULL: haystack.text}
    controls = {kind: asker.prompts.full_context(question.text, text) for kind, text in texts.items()}
    found, replies = await asyncio.gather(_read(asker, asked), asker.ask_those_that_fit(controls))
    logprobs = await asyncio.gather(*(asker.logprob(controls[kind], question.answers) for kind in replies))
    tick()
    controlled = zip(replies.items(), logprobs, strict=True)
    return [found, *(_record(kind, asked.length, haystack, reply, known) for (kind, reply), known in controlled)]


async def _read(asker: Asker, asked: Asked) -> dict[str, Any]:
    question = asked.haystack.question
    trajectory = await asker.read(question.text, asker.chunks(asked.haystack.text), question.id)
    memory = trajectory.memories[-1]
    turn, logprob = await asyncio.gather(
        answer(asker.engine, asker.prompts, question.text, trajectory, asker.reply),
        asker.logprob(asker.prompts.answer(question.text, memory), question.answers),
    )
    told = {"memory": memory, KEPT: contains(memory, question.answers), "chunks": len(trajectory.memories) - 1}
    return _record(READER, asked.length, asked.haystack, turn.text, logprob) | told


def _record(kind: str, length: int, haystack: Haystack, reply: str, logprob: float) -> dict[str, Any]:
    question = haystack.question
    return {
        "kind": kind,
        "length": length,
        "document": question.id,
        "question": question.text,
        "gold": list(question.answers),
        "answer": reply,
        "logprob": logprob,
        **scores(reply, question.answers),
    }
