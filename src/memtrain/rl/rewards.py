"""Rewards: pure functions from what was said to numbers (MemTrain section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.recipe import Mode, RewardKind
from memtrain.tasks.verifier import exact_match, token_f1


def text_reward(kind: RewardKind, text: str, golds: Sequence[str]) -> float:
    """Reward of a sampled reply: ``exact`` (0 or 1) or ``f1`` (0 to 1), best over the accepted spellings.

    Raises ValueError for ``likelihood``, which is not a function of a text.
    """
    if kind == "exact":
        return exact_match(text, golds)
    if kind == "f1":
        return token_f1(text, golds)
    raise ValueError(f"{kind!r} is no reward of a sampled text")


def joint_reward(e2e: float, recall: Sequence[float], weight: float) -> float:
    """R_E + lambda * mean_j R_I[j] (MemTrain eq. 5): a memory is paid for what can be recalled from it.

    ``recall`` holds the recall rewards of this trajectory (with several probes: one mean a probe); empty adds nothing.
    """
    return e2e + weight * mean(recall) if recall else e2e


def trajectory_rewards(
    e2e: Sequence[float], recall: Sequence[Sequence[float]], mode: Mode, weight: float
) -> tuple[float, ...]:
    """Reward of each of the G1 trajectories of a document, by the mode of the recipe.

    ``e2e``: G1 rewards of the answers; ``recall``: G1 sequences, one value a probe. ``full`` couples the two;
    ``decoupled`` (recall trains in groups of its own) and ``end-to-end`` (no recall) leave R_E as it is.
    Raises ValueError where the two do not belong to the same trajectories.
    """
    if mode != "full":
        return tuple(e2e)
    if len(e2e) != len(recall):
        raise ValueError(f"{len(e2e)} trajectories but recall rewards of {len(recall)}")
    return tuple(joint_reward(reward, probes, weight) for reward, probes in zip(e2e, recall, strict=True))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
