"""One step's experience: rollouts, paired probes, rewards, groups and rows (MemTrain section 3).

Straight-line code over the tasks; every episode of the step runs at once and the engine batches. Nothing here imports
torch.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

from memtrain.engines.base import Engine
from memtrain.evaluation.metrics import reading_metrics, surfaces_by_chunk
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.memory.reader import read, split_chunks
from memtrain.recipe import Recipe
from memtrain.rl.advantages import RowBatch, cross_entropy_rows, group_advantages, rows_of
from memtrain.rl.rewards import mean, text_reward, trajectory_rewards
from memtrain.tasks.likelihood import answer_logprobs
from memtrain.tasks.recall import draw_probes, recall_answers, recall_group, recall_scores
from memtrain.tasks.reconstruction import answer_scores, reconstruction_group, rollout
from memtrain.types import Group, Probe, ReadingDocument, Row, SamplingParams, TrainingDocument, Trajectory, Turn


class Source(Protocol):
    """What a group of trajectories is about: a text that is read, or a question that is searched for."""

    @property
    def id(self) -> str: ...

    @property
    def answer(self) -> str: ...


@dataclass
class Episodes:
    """What one document gave: its trajectories with their rewards."""

    document: Source
    trajectories: list[Trajectory]
    e2e: list[float]
    """Reward of each final answer."""
    recall: list[list[float]] = field(default_factory=list)
    """For each trajectory one value a probe (mean over its G2 answers)."""
    rewards: tuple[float, ...] = ()
    """What the trajectories are compared by."""
    groups: list[Group] = field(default_factory=list)
    known: list[Turn] = field(default_factory=list)
    """Turns whose completion is the known answer (likelihood rewards)."""
    probes: list[list[Probe]] = field(default_factory=list)
    """For each trajectory its probes: the same ones, where they are paired."""
    entities_kept: list[float] = field(default_factory=list)


@dataclass
class Experience:
    """Rows for one update, numbers for the log, and all episodes for the samples file."""

    rows: list[Row]
    metrics: dict[str, float]
    episodes: list[Episodes]
    weights: dict[str, float] = field(default_factory=dict)
    """Of how many things a metric is the mean; those without are counts. Workers' metrics are combined by them."""


async def collect(
    engine: Engine, prompts: Prompts, documents: Sequence[ReadingDocument], recipe: Recipe, step: int
) -> Experience:
    """Roll out ``group_size`` trajectories a document, probe their memories, and turn rewards into rows.

    Probes depend on the recipe's seed, the step and the document only.
    """
    episodes = await asyncio.gather(*(_episodes(engine, prompts, document, recipe, step) for document in documents))
    return experience_of(episodes, recipe)


def experience_of(episodes: Sequence[Episodes], recipe: Recipe) -> Experience:
    """Rows and numbers of a step's episodes, of whatever task."""
    batch = rows_of((group for episode in episodes for group in episode.groups), recipe.train.std_normalise)
    rows = list(batch.rows)
    if recipe.train.recall_cross_entropy > 0:
        rows += [row for e in episodes for row in cross_entropy_rows(e.known, group_id=e.document.id)]
    metrics, weights = _metrics(list(episodes))
    return Experience(rows, metrics | batch.metrics | _dropped(batch), list(episodes), weights)


async def _episodes(engine: Engine, prompts: Prompts, document: ReadingDocument, recipe: Recipe, step: int) -> Episodes:
    chunks = split_chunks(document.text, engine.tokenizer, recipe.memory)
    rng = random.Random(f"{recipe.seed}/{step}/{document.id}/probes")
    train, size = recipe.train, recipe.train.group_size
    probes = _probes(document, chunks, recipe, rng)
    write = SamplingParams(recipe.memory.memory_tokens, train.temperature, train.top_p, prompts.stop)
    reply = SamplingParams(recipe.memory.answer_tokens, train.temperature, train.top_p, prompts.stop)
    if recipe.tasks.reconstruction_reward == "likelihood":
        # What the model knows without a memory is the same for the whole group: scored once, while the group reads.
        target = prompts.target(document.answer)
        closed, trajectories = await asyncio.gather(
            answer_logprobs(engine, prompts.answer(document.question, NO_MEMORY), target),
            asyncio.gather(
                *(
                    read(engine, prompts, document.question, chunks, write, document_id=document.id, index=i)
                    for i in range(size)
                )
            ),
        )
        scores = await asyncio.gather(
            *(
                answer_scores(
                    engine, prompts, document, t.memories[-1], step=len(t.memories), baseline_logprob=closed[0]
                )
                for t in trajectories
            )
        )
        found = Episodes(document, list(trajectories), [score.gain for score in scores], probes=probes)
        found.known += [scores[place].turn for place in trained_on(recipe, size, rng)]
    else:
        drawn = await asyncio.gather(
            *(rollout(engine, prompts, document, chunks, i, write, reply) for i in range(size))
        )
        golds = [document.answer, *document.aliases]
        kind = recipe.tasks.reconstruction_reward
        found = Episodes(document, list(drawn), [text_reward(kind, t.answer, golds) for t in drawn], probes=probes)
    await probe_memories(engine, prompts, found, recipe, reply, rng)
    found.rewards = trajectory_rewards(found.e2e, found.recall, recipe.tasks.mode, recipe.tasks.recall_weight)
    found.groups.insert(0, reconstruction_group(document, found.trajectories, found.rewards))
    surfaces = surfaces_by_chunk(chunks, document.mentions)
    measured = [reading_metrics(trajectory, surfaces).get("entities_kept") for trajectory in found.trajectories]
    found.entities_kept = [value for value in measured if value is not None]
    return found


def _probes(document: ReadingDocument, chunks: Sequence[str], recipe: Recipe, rng: random.Random) -> list[list[Probe]]:
    """Each trajectory's probes. Unpaired ones are drawn for each by itself (published), paired ones once."""
    tasks, size = recipe.tasks, recipe.train.group_size
    if tasks.mode == "end-to-end" or not isinstance(document, TrainingDocument):
        return [[] for _ in range(size)]
    last = tasks.probe_memory == "last"
    if tasks.paired_probes:
        return [draw_probes(document, chunks, tasks.probes, rng, last=last)] * size
    return [draw_probes(document, chunks, tasks.probes, rng, last=last) for _ in range(size)]


async def probe_memories(
    engine: Engine, prompts: Prompts, found: Episodes, recipe: Recipe, reply: SamplingParams, rng: random.Random
) -> None:
    """Ask the memories their probes; fills ``recall`` and, by the kind of reward, groups or known answers."""
    trajectories, probes = found.trajectories, found.probes
    if recipe.tasks.recall_reward == "likelihood":
        different = list(dict.fromkeys(probe for asked in probes for probe in asked))
        without = await asyncio.gather(
            *(
                answer_logprobs(engine, prompts.recall_without_memory(probe.masked_chunk), prompts.target(probe.answer))
                for probe in different
            )
        )
        baselines = {probe: logprob for probe, (logprob, _) in zip(different, without, strict=True)}
        scores = await asyncio.gather(
            *(
                asyncio.gather(
                    *(
                        recall_scores(engine, prompts, t.memories[probe.step], probe, baseline_logprob=baselines[probe])
                        for probe in asked
                    )
                )
                for t, asked in zip(trajectories, probes, strict=True)
            )
        )
        for number in range(max((len(asked) for asked in probes), default=0)):
            for place in trained_on(recipe, len(trajectories), rng):
                found.known += [score.turn for score in scores[place][number : number + 1]]
        found.recall = [[score.gain for score in row] for row in scores]
        return
    kind, n = recipe.tasks.recall_reward, recipe.tasks.recall_samples
    answers = await asyncio.gather(
        *(
            recall_answers(engine, prompts, t.memories[probe.step], probe, reply, n)
            for t, asked in zip(trajectories, probes, strict=True)
            for probe in asked
        )
    )
    found.recall = [[] for _ in trajectories]
    places = [(place, number) for place, asked in enumerate(probes) for number in range(len(asked))]
    for (place, number), turns in zip(places, answers, strict=True):
        rewards = [text_reward(kind, turn.text, [probes[place][number].answer]) for turn in turns]
        found.recall[place].append(mean(rewards))
        found.groups.append(recall_group(found.document.id, trajectories[place].index, number, turns, rewards))


def trained_on(recipe: Recipe, size: int, rng: random.Random) -> list[int]:
    """Trajectories whose memory trains a known answer: G copies of one question teach little more than a few."""
    n = recipe.train.known_answer_samples
    return sorted(rng.sample(range(size), n)) if 0 < n < size else list(range(size))


def _metrics(episodes: list[Episodes]) -> tuple[dict[str, float], dict[str, float]]:
    """Means over a step's episodes and of how many values each is the mean; and the number of probes."""
    # A searcher's turns write its memory too.
    writes = [turn for e in episodes for t in e.trajectories for turn in t.turns if turn.kind in ("write", "search")]
    values: dict[str, list[float]] = {
        "reward": [reward for e in episodes for reward in e.rewards],
        "reconstruction_reward": [reward for e in episodes for reward in e.e2e],
        "reward_std_in_group": [_std(e.rewards) for e in episodes],
        "memory_tokens": [len(turn.completion_ids) for turn in writes],
        "truncated": [turn.stop_reason == "length" for turn in writes],
        "recall_reward": [value for e in episodes for values in e.recall for value in values],
        "entities_kept": [value for e in episodes for value in e.entities_kept],
    }
    metrics = {name: fmean(found) for name, found in values.items() if found}
    weights = {name: float(len(found)) for name, found in values.items() if found}
    return metrics | {"probes": float(sum(len({p for asked in e.probes for p in asked}) for e in episodes))}, weights


def _std(values: Sequence[float]) -> float:
    centre = fmean(values)
    return fmean((value - centre) ** 2 for value in values) ** 0.5


def _dropped(batch: RowBatch) -> dict[str, float]:
    return {"dropped_groups": float(sum(batch.dropped.values())), "groups": float(sum(batch.kept.values()))}


def sample_records(
    episodes: Sequence[Episodes], prompts: Prompts, step: int, limit: int, std_normalise: bool
) -> list[dict[str, Any]]:
    """Prompts, memories and rewards of the first ``limit`` groups, one record a turn, for samples/*.parquet."""
    records = []
    for found in episodes[:limit]:
        advantages = group_advantages(found.rewards, std_normalise) or (0.0,) * len(found.rewards)
        for place, trajectory in enumerate(found.trajectories):
            recall = found.recall[place] if found.recall else []
            asked = [
                {"step": probe.step, "chunk": probe.chunk, "answer": probe.answer, "reward": reward}
                for probe, reward in zip(found.probes[place] if found.probes else [], recall, strict=False)
            ]
            for turn in trajectory.turns:
                records.append(
                    {
                        "train_step": step,
                        "group_id": found.document.id,
                        "trajectory_id": f"{found.document.id}/{trajectory.index}",
                        "kind": turn.kind,
                        "step": turn.step,
                        "prompt": prompts.tokenizer.decode(list(turn.prompt_ids)),
                        "text": turn.text,
                        "stop_reason": turn.stop_reason,
                        "answer": found.document.answer,
                        "reward": found.rewards[place],
                        "e2e_reward": found.e2e[place],
                        "recall_reward": fmean(recall) if recall else None,
                        "advantage": advantages[place],
                        "probes": asked,
                    }
                )
    return records
