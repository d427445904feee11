"""Dense reward: how much more likely a memory makes a known answer. One forward pass, no sampling.

The published reward (exact match of sampled answers) is zero nearly everywhere for a small model; this one is not
(``docs``: known weaknesses of the method). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memtrain.engines.base import Engine, Weights
from memtrain.memory.prompts import Target
from memtrain.types import Turn, TurnKind


@dataclass(frozen=True)
class Likelihood:
    """log p(answer | memory, ...) and the same without memory, in nats, summed over the scored tokens."""

    logprob: float
    """Given the memory."""
    baseline_logprob: float
    """Given "no memory yet" instead."""
    n_tokens: int
    """Scored tokens: those of the answer and the closing ``}`` (see ``Target.scored``)."""
    turn: Turn
    """The prompt with the whole target as completion: what cross-entropy trains on."""

    @property
    def gain(self) -> float:
        """Nats the memory adds: the reward."""
        return self.logprob - self.baseline_logprob

    @property
    def gain_per_token(self) -> float:
        """The gain divided by the scored tokens: comparable between long and short answers."""
        return self.gain / self.n_tokens


async def answer_logprobs(
    engine: Engine, prompt_ids: Sequence[int], target: Target, weights: Weights = "policy"
) -> tuple[float, tuple[float, ...]]:
    """Summed log-prob of the scored tokens, and the log-prob of every token of the target."""
    logprobs = tuple(await engine.score(prompt_ids, target.ids, weights))
    return sum(logprobs[target.scored]), logprobs


async def likelihood(
    engine: Engine,
    prompt_ids: Sequence[int],
    baseline_ids: Sequence[int],
    target: Target,
    *,
    kind: TurnKind,
    step: int,
    text: str,
    weights: Weights = "policy",
    baseline_logprob: float | None = None,
) -> Likelihood:
    """Score a known answer after a prompt and after its counterpart without memory.

    ``baseline_logprob`` skips the second pass: it is the same for all trajectories of a group, which share probes.
    """
    logprob, logprobs = await answer_logprobs(engine, prompt_ids, target, weights)
    if baseline_logprob is None:
        baseline_logprob, _ = await answer_logprobs(engine, baseline_ids, target, weights)
    scored = range(len(target.ids))[target.scored]
    turn = Turn(
        kind=kind, step=step, prompt_ids=tuple(prompt_ids), completion_ids=target.ids, logprobs=logprobs, text=text
    )
    return Likelihood(logprob=logprob, baseline_logprob=baseline_logprob, n_tokens=max(1, len(scored)), turn=turn)
