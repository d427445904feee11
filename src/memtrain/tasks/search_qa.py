"""Search QA: answer one or several questions with a search engine and a bounded memory; reward is the mean over them.

MEM1 (arXiv 2506.15841) trains on several questions at once, MemTrain (arXiv 2606.03197) on two. The answers stand in
one box, separated by semicolons, in the order of the questions. Recall probes are MemTrain's, carried over to results:
an entity of what an earlier search found is hidden, and a later memory is asked for it. Nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.corpus.entities import unfit
from memtrain.corpus.rules import RulesFinder
from memtrain.engines.base import Engine
from memtrain.memory.prompts import NO_MEMORY
from memtrain.memory.search_prompts import BETWEEN, BOX, SearchPrompts
from memtrain.memory.searcher import SearchEpisode, boxes, search
from memtrain.search.base import Retriever
from memtrain.settings import EntitySettings
from memtrain.tasks.likelihood import Likelihood, answer_logprobs, likelihood
from memtrain.tasks.recall import draw_probes
from memtrain.types import Group, Mention, Passage, Probe, QuestionDocument, Trajectory


@dataclass(frozen=True)
class SearchTask:
    """One or several questions that are answered in one episode."""

    id: str
    """Without ``/``, which joins it with other names in ids of groups."""
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    """Accepted spellings of each question's answer, at least one each."""

    def __post_init__(self) -> None:
        if not self.questions or len(self.questions) != len(self.answers) or not all(self.answers):
            raise ValueError(f"task {self.id}: every question needs an answer")
        if "/" in self.id:
            raise ValueError(f"task {self.id}: an id may not hold a slash")

    @property
    def answer(self) -> str:
        """The first accepted answers, as a box would hold them."""
        return f"{BETWEEN} ".join(spellings[0] for spellings in self.answers)


async def episode(
    engine: Engine,
    prompts: SearchPrompts,
    retriever: Retriever,
    task: SearchTask,
    index: int,
    *,
    temperature: float,
    top_p: float = 1.0,
    answering: bool = True,
) -> SearchEpisode:
    """One episode on a task; ``index`` is its place in the group, ``answering`` as in :func:`search`."""
    return await search(
        engine,
        prompts,
        retriever,
        task.questions,
        temperature=temperature,
        top_p=top_p,
        document_id=task.id,
        index=index,
        answering=answering,
    )


async def closed_book(engine: Engine, prompts: SearchPrompts, task: SearchTask) -> float:
    """log p(answers) in nats, with no search and no memory."""
    prompt_ids = prompts.last_turn(task.questions, "", NO_MEMORY)
    logprob, _ = await answer_logprobs(engine, prompt_ids, prompts.target(task.answer))
    return logprob


async def answer_scores(
    engine: Engine, prompts: SearchPrompts, task: SearchTask, done: SearchEpisode, closed: float
) -> Likelihood:
    """log p(answers | last memory, last results), ``\\boxed{`` given, against ``closed`` of :func:`closed_book`.

    The answers are one text, as a box holds them: the score is their joint likelihood.
    """
    return await likelihood(
        engine,
        prompts.last_turn(task.questions, done.shown[-1], done.trajectory.memories[-1]),
        (),  # what it is compared with is known
        prompts.target(task.answer),
        kind="answer",
        step=len(done.trajectory.memories),
        text=f"{BOX}{task.answer}}}",
        baseline_logprob=closed,
    )


def separate(reply: str, n: int) -> list[str]:
    """The reply to ``n`` questions as one reply a question, each with its own box; ``""`` where one is missing.

    The last box counts, cut at its semicolons; where it has none, but there are as many boxes as questions, each
    answers one. Answers beyond the last question are left out. One question takes the whole box.
    """
    found = [content for _, _, content in boxes(reply)]
    if not found:
        return [""] * n
    if n == 1:
        said = found[-1:]
    elif len(found) == n and not any(BETWEEN in content for content in found):
        said = found
    else:
        said = [part.strip() for part in found[-1].split(BETWEEN)]
    return [f"{BOX}{part}}}" if part else "" for part in (said + [""] * n)[:n]]


def search_group(task: SearchTask, trajectories: Sequence[Trajectory], rewards: Sequence[float]) -> Group:
    """The trajectories of one task; every turn of a trajectory shares its advantage."""
    return Group(
        id=task.id,
        kind="e2e",
        rewards=tuple(rewards),
        members=tuple(trajectory.turns for trajectory in trajectories),
        member_ids=tuple(f"{task.id}/{trajectory.index}" for trajectory in trajectories),
    )


def draw_search_probes(
    task: SearchTask, found: SearchEpisode, n: int, entities: EntitySettings, rng: random.Random, *, last: bool = False
) -> list[Probe]:
    """Up to ``n`` probes of one trajectory: chunk l is what turn l + 1 saw of results, which m[l + 1] is the first to
    have read. Entities are found by rules; those that are an answer are never asked for.

    Each trajectory has seen results of its own, so a group shares no probes. None where nothing was found.
    """
    chunks = found.shown[: len(found.trajectory.memories) - 1]
    finder = RulesFinder()
    hits = {(hit.title, hit.text) for search in found.searches for hit in search.found.hits}
    named = [entity for title, text in sorted(hits) for entity in finder.find(Passage(title, title, text))]
    mentions = {e.text: Mention(e.text, e.kind) for e in named if unfit(e.text, entities, len(hits)) is None}
    spellings = tuple(dict.fromkeys(spelling for answers in task.answers for spelling in answers))
    # draw_probes needs an id, the answers and the mentions of whatever was read.
    read: Any = QuestionDocument(task.id, "", "", spellings[0], spellings[1:], tuple(mentions.values()))
    return draw_probes(read, chunks, n, rng, last=last) if chunks else []
