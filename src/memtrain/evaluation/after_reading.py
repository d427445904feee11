"""Questions after reading: what does a memory hold that was written before anybody asked?

Published memory agents know the question while they read, and fail where they do not (MemoryAgentBench: MemAgent 0.198,
MEM1 0.071, BM25 0.502; see the method's known weaknesses). Here one text is read twice over: with a neutral instruction
in the question's place, all questions then being asked of the one last memory, and once for each question with the
question known from the start. Two kinds of question, made from the text alone: needles as in RULER, and entities hidden
in passages as in the recall probes of MemTrain (section 3.2), but asked of the last memory only. Beside them: no text
at all, the paragraphs that BM25 finds for the question, the whole text where it fits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.corpus.entities import EntityFinder, hideable
from memtrain.evaluation.long_qa import BM25, CLOSED, FULL, READER, Asker, Tick
from memtrain.evaluation.ruler import needles
from memtrain.evaluation.ruler.needles import NeedleTask
from memtrain.evaluation.ruler.sample import Needle, Sample
from memtrain.evaluation.ruler.scoring import scores
from memtrain.evaluation.ruler.tasks import RulerMaker
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.settings import EntitySettings
from memtrain.tasks.recall import hide
from memtrain.tasks.verifier import boxable
from memtrain.types import TARGET_TOKEN, Passage, Trajectory

LATER = "Questions about this text will be asked later; keep what they may ask for."
"""What stands in the question's place while nobody knows the question."""
AFTER = "reader, asked later"
"""Kind of the records whose question came after the reading; :data:`READER` knows it from the start."""
NAME = "after-reading"
NEEDLES, RECALL = f"{NAME}-needles", f"{NAME}-recall"
HIDDEN = NeedleTask(keys=4)
"""The needles of a text; each is asked for."""
PASSAGES = 4
"""Passages of a text in which an entity is hidden, where it has as many that stand whole."""


@dataclass(frozen=True)
class Question:
    """One question about a text."""

    task: str
    """:data:`NEEDLES` or :data:`RECALL`."""
    text: str
    """As a reader sees it who knows it from the start."""
    answers: tuple[str, ...]
    """One."""
    depth: float
    """Where in the text the answer stands, 0 to 1."""
    masked: str | None = None
    """Recall: the passage with the entity hidden."""

    def of_memory(self, prompts: Prompts, memory: str) -> list[int]:
        """Prompt that asks a memory."""
        return prompts.answer(self.text, memory) if self.masked is None else prompts.recall(memory, self.masked)

    def of_text(self, prompts: Prompts, text: str) -> list[int]:
        """Prompt that shows text of the document instead of a memory."""
        return prompts.full_context(self.text, text) if self.masked is None else prompts.recall(text, self.masked)


@dataclass(frozen=True)
class Exam:
    """A text and the questions that are asked about it."""

    sample: Sample
    questions: tuple[Question, ...]


def make_exam(
    maker: RulerMaker, finder: EntityFinder, settings: EntitySettings, tokens: int, number: int, seed: int
) -> Exam:
    """Text ``number`` of a length and its questions; the same for the same arguments.

    Fewer than :data:`PASSAGES` entities are asked for where fewer passages stand whole in the text or hold one that
    may be hidden. Raises :class:`UserError` where the needles do not fit.
    """
    sample = maker.make(NAME, tokens, number, seed, HIDDEN)
    rng = random.Random(f"{seed}/{NAME}/{number}/{tokens}/entities")
    questions = [_about_needle(needle, sample) for needle in sample.needles]
    places = [place for place, passage in enumerate(sample.passages) if passage is not None]
    for place in rng.sample(places, len(places)):
        if len(questions) == len(sample.needles) + PASSAGES:
            break
        found = _about_entity(sample.passages[place], finder, settings, rng, place / len(sample.passages))
        if found is not None:
            questions.append(found)
    return Exam(sample, tuple(questions))


def _about_needle(needle: Needle, sample: Sample) -> Question:
    text = needles.question(HIDDEN.value_kind, [needle.key], 1)
    return Question(NEEDLES, text, (needle.value,), needle.offset / len(sample.text))


def _about_entity(
    passage: Passage | None, finder: EntityFinder, settings: EntitySettings, rng: random.Random, depth: float
) -> Question | None:
    if passage is None:
        return None
    entities = [entity for entity in finder.find(passage) if hideable(entity, passage, settings)]
    for entity in rng.sample(entities, len(entities)):
        answer = " ".join(entity.text.split())
        masked = hide(passage.text, answer) if boxable(answer) else None
        if masked is not None:
            text = f"What does {TARGET_TOKEN} stand for in this passage of the text?\n{masked}"
            return Question(RECALL, text, (answer,), depth, masked)
    return None


async def examine(asker: Asker, exam: Exam, tick: Tick) -> list[dict[str, Any]]:
    """One record a question and kind; ``tick`` when the text is done."""
    sample = exam.sample
    chunks, retrieve = asker.chunks(sample.text), asker.retriever(sample.paragraphs)
    later = asyncio.ensure_future(asker.read(LATER, chunks, sample.id))
    parts = await asyncio.gather(
        *(_question(asker, sample, question, chunks, retrieve, later) for question in exam.questions)
    )
    tick()
    return [record for part in parts for record in part]


async def _question(
    asker: Asker,
    sample: Sample,
    question: Question,
    chunks: Sequence[str],
    retrieve: Callable[[str], str],
    later: asyncio.Future[Trajectory],
) -> list[dict[str, Any]]:
    prompts = asker.prompts
    texts = {BM25: question.of_text(prompts, retrieve(question.masked or question.text))}
    if sample.n_tokens < asker.engine.context_tokens:
        texts[FULL] = question.of_text(prompts, sample.text)
    texts[CLOSED] = question.of_memory(prompts, NO_MEMORY)
    known, unknown, controls = await asyncio.gather(
        asker.read(question.text, chunks, sample.id), later, asker.ask_those_that_fit(texts)
    )
    memories = {READER: known.memories[-1], AFTER: unknown.memories[-1]}
    told = await asyncio.gather(*(asker.ask(question.of_memory(prompts, memory)) for memory in memories.values()))
    replies = dict(zip(memories, told, strict=True)) | controls
    return [
        {
            "task": question.task,
            "kind": kind,
            "length": sample.length,
            "n_tokens": sample.n_tokens,
            "document": sample.id,
            "question": question.text,
            "depth": round(question.depth, 4),
            "gold": list(question.answers),
            "answer": reply,
            **scores(reply, question.answers),
            **({"memory": memories[kind], "chunks": len(known.memories) - 1} if kind in memories else {}),
        }
        for kind, reply in replies.items()
    ]
