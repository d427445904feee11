"""One step's experience of the searcher: episodes on search tasks, rewards, groups and rows.

Every turn of an episode is a row of its own and gets the advantage of its trajectory; what was found stands in prompts
only, so no loss falls on it (Search-R1 masks it out of one long sequence instead). Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any

from memtrain.engines.base import Engine
from memtrain.errors import UserError
from memtrain.memory.prompts import Prompts
from memtrain.memory.search_prompts import SearchPrompts
from memtrain.memory.searcher import SearchEpisode
from memtrain.recipe import Mode, Recipe, RewardKind
from memtrain.rl.experience import Episodes, Experience, experience_of, probe_memories, trained_on
from memtrain.rl.rewards import mean, text_reward, trajectory_rewards
from memtrain.rl.trainer import Collect
from memtrain.search.base import Retriever
from memtrain.tasks.search_qa import (
    SearchTask,
    answer_scores,
    closed_book,
    draw_search_probes,
    episode,
    search_group,
    separate,
)
from memtrain.types import Probe, SamplingParams


def collector(retriever: Retriever) -> Collect:
    """What :class:`memtrain.rl.trainer.Trainer` collects with when it trains the searcher on :class:`SearchTask`."""

    async def collect(engine: Engine, prompts: Prompts, tasks: Sequence[Any], recipe: Recipe, step: int) -> Experience:
        """``group_size`` trajectories a task, all at once; sampling as ``train`` says, the reward as ``qa.reward``.

        Raises :class:`UserError` where more than ``search.max_failed_share`` of the step's searches failed: what is
        left to learn from would teach the model to live without a search engine.
        """
        asked = SearchPrompts(engine.tokenizer, recipe.memory, recipe.search)
        asked.check_window(engine.context_tokens, [task.questions for task in tasks])
        before = retriever.counts()
        parts = await asyncio.gather(*(_episodes(engine, asked, retriever, task, recipe, step) for task in tasks))
        played = [one for _, episodes in parts for one in episodes]
        _check_failures(played, retriever, recipe, step)
        experience = experience_of([found for found, _ in parts], recipe)
        seconds = retriever.counts()["seconds"] - before["seconds"]
        experience.metrics |= search_metrics(played) | {"search_seconds": seconds}
        return experience

    return collect


def search_reward(kind: RewardKind, reply: str, task: SearchTask) -> float:
    """Mean over the task's questions of the reward of their answers."""
    replies = separate(reply, len(task.questions))
    return mean([text_reward(kind, said, golds) for said, golds in zip(replies, task.answers, strict=True)])


def search_metrics(played: Sequence[SearchEpisode]) -> dict[str, float]:
    """Numbers of episodes for the log: means an episode, and shares."""
    searches = sum(len(one.searches) for one in played)
    turns = sum(len(one.trajectory.turns) for one in played)
    return {
        "searches": searches / len(played),
        "turns": turns / len(played),
        "failed_searches": sum(one.failed for one in played) / max(1, searches),
        "answered": fmean(bool(separate(one.trajectory.answer, 1)[0]) for one in played),
        "lost_turns": sum(one.lost for one in played) / max(1, turns),
    }


async def _episodes(
    engine: Engine, prompts: SearchPrompts, retriever: Retriever, task: SearchTask, recipe: Recipe, step: int
) -> tuple[Episodes, list[SearchEpisode]]:
    train, kind = recipe.train, recipe.qa.reward
    rng = random.Random(f"{recipe.seed}/{step}/{task.id}/probes")
    play = partial(episode, engine, prompts, retriever, task, temperature=train.temperature, top_p=train.top_p)
    # A likelihood scores the known answer: none is sampled for it.
    played = await asyncio.gather(*(play(index, answering=kind != "likelihood") for index in range(train.group_size)))
    trajectories = [one.trajectory for one in played]
    if kind == "likelihood":
        closed = await closed_book(engine, prompts, task)
        scores = await asyncio.gather(*(answer_scores(engine, prompts, task, one, closed) for one in played))
        found = Episodes(task, trajectories, [score.gain for score in scores])
        found.known += [scores[place].turn for place in trained_on(recipe, train.group_size, rng)]
    else:
        found = Episodes(task, trajectories, [search_reward(kind, t.answer, task) for t in trajectories])
    found.rewards = tuple(found.e2e)
    if recipe.search.probes:
        found.probes = [_probes(task, one, recipe, rng) for one in played]
        reply = SamplingParams(recipe.memory.answer_tokens, train.temperature, train.top_p, prompts.stop)
        await probe_memories(engine, prompts, found, recipe, reply, rng)
        coupled: Mode = "decoupled" if recipe.tasks.mode == "decoupled" else "full"
        found.rewards = trajectory_rewards(found.e2e, found.recall, coupled, recipe.tasks.recall_weight)
    found.groups.insert(0, search_group(task, trajectories, found.rewards))
    return found, list(played)


def _probes(task: SearchTask, one: SearchEpisode, recipe: Recipe, rng: random.Random) -> list[Probe]:
    last = recipe.tasks.probe_memory == "last"
    return draw_search_probes(task, one, recipe.search.probes, recipe.entities, rng, last=last)


def _check_failures(played: Sequence[SearchEpisode], retriever: Retriever, recipe: Recipe, step: int) -> None:
    searches = [search for one in played for search in one.searches]
    failures = Counter(search.found.failure for search in searches if search.found.failed)
    if failures.total() <= recipe.search.max_failed_share * len(searches):
        return
    [(reason, _)] = failures.most_common(1)
    raise UserError(
        f"{failures.total()} of the {len(searches)} searches of step {step} failed at {retriever.name} ({reason}); "
        "start the search server again and resume the run, or raise search.max_failed_share"
    )
