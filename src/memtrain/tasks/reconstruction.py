"""Task A, end-to-end masked reconstruction: read a document with one entity hidden, then name it (MemTrain 3.1).

Two forms: a sampled answer that is checked (:func:`rollout`), and the likelihood of the known answer given the last
memory (``memory.reader.read``, then :func:`answer_scores`: no answer is sampled).
A question document (task training) is read and answered in the same way; only its question is another.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memtrain.engines.base import Engine, Weights
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.memory.reader import MemoryCallback, answer, read
from memtrain.tasks.likelihood import Likelihood, likelihood
from memtrain.types import Group, ReadingDocument, SamplingParams, Trajectory


async def rollout(
    engine: Engine,
    prompts: Prompts,
    document: ReadingDocument,
    chunks: Sequence[str],
    index: int,
    write_params: SamplingParams,
    answer_params: SamplingParams,
    on_memory: MemoryCallback | None = None,
) -> Trajectory:
    """One trajectory with T writes and a sampled answer turn; ``index`` is its place in the group."""
    trajectory = await read(
        engine,
        prompts,
        document.question,
        chunks,
        write_params,
        document_id=document.id,
        index=index,
        on_memory=on_memory,
    )
    turn = await answer(engine, prompts, document.question, trajectory, answer_params)
    return replace(trajectory, turns=(*trajectory.turns, turn), answer=turn.text)


async def answer_scores(
    engine: Engine,
    prompts: Prompts,
    document: ReadingDocument,
    memory: str,
    *,
    step: int = 1,
    weights: Weights = "policy",
    baseline_logprob: float | None = None,
) -> Likelihood:
    """log p(answer | memory) minus log p(answer | no memory), ``\\boxed{`` given."""
    return await likelihood(
        engine,
        prompts.answer(document.question, memory),
        prompts.answer(document.question, NO_MEMORY),
        prompts.target(document.answer),
        kind="answer",
        step=step,
        text=f"\\boxed{{{document.answer}}}",
        weights=weights,
        baseline_logprob=baseline_logprob,
    )


def reconstruction_group(
    document: ReadingDocument, trajectories: Sequence[Trajectory], rewards: Sequence[float]
) -> Group:
    """The G1 trajectories of one document; every sampled turn of a trajectory shares its advantage.

    Trajectories of the likelihood form carry no answer turn, so only what was sampled is trained by policy gradient.
    """
    return Group(
        id=document.id,
        kind="e2e",
        rewards=tuple(rewards),
        members=tuple(trajectory.turns for trajectory in trajectories),
        member_ids=tuple(f"{document.id}/{trajectory.index}" for trajectory in trajectories),
    )
