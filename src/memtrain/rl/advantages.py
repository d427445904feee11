"""From grouped rewards to training rows: the advantage half of the joint GRPO update (MemTrain section 3.3).

Advantages are taken inside a group, at the level of trajectories (or of recall answers), and expanded to rows last:
nothing below the rows knows what a memory is. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from memtrain.types import Group, Row, Turn

STD_EPS = 1e-4
"""Added to the std before dividing, as in TRL's GRPO trainer (verl: 1e-6)."""
MIN_RANGE = 1e-8
"""Groups whose rewards differ by no more carry no signal."""


@dataclass(frozen=True)
class RowBatch:
    """Policy rows of a step, with what was kept and dropped on the way."""

    rows: tuple[Row, ...]
    """One a turn of every group that was kept, in the order of groups, members and turns."""
    kept: dict[str, int]
    """Groups kept, by kind (``e2e``, ``recall``)."""
    dropped: dict[str, int]
    """Groups dropped because all their rewards were equal, by kind."""

    @property
    def metrics(self) -> dict[str, float]:
        """Counts for the log: ``groups/<kind>/kept`` and ``groups/<kind>/dropped``."""
        kept = {f"groups/{kind}/kept": float(count) for kind, count in self.kept.items()}
        return kept | {f"groups/{kind}/dropped": float(count) for kind, count in self.dropped.items()}


def group_advantages(
    rewards: Sequence[float], std_normalise: bool = False, *, eps: float = STD_EPS, min_range: float = MIN_RANGE
) -> tuple[float, ...] | None:
    """A = R - mean(R), divided by (sample std + eps) where asked for; None where all rewards are equal.

    Without the division it is Dr. GRPO (arXiv 2503.20783) and what MemTrain publishes; with it GRPO as TRL and verl
    compute it, with the sample (n - 1) standard deviation. A group of one has nothing to be compared with: None.
    Raises ValueError for a reward that is not finite.
    """
    if not all(math.isfinite(reward) for reward in rewards):
        raise ValueError(f"rewards must be finite: {tuple(rewards)}")
    if len(rewards) < 2 or max(rewards) - min(rewards) <= min_range:
        return None
    centre = fmean(rewards)
    scale = stdev(rewards) + eps if std_normalise else 1.0
    return tuple((reward - centre) / scale for reward in rewards)


def rows_of(groups: Iterable[Group], std_normalise: bool = False) -> RowBatch:
    """Policy rows: every turn of every member gets the member's advantage.

    Groups without variance are dropped whole, each by itself: an end-to-end group may go while its recall groups stay,
    and the other way round.
    """
    rows: list[Row] = []
    kept, dropped = {"e2e": 0, "recall": 0}, {"e2e": 0, "recall": 0}
    for group in groups:
        advantages = group_advantages(group.rewards, std_normalise)
        if advantages is None:
            dropped[group.kind] += 1
            continue
        kept[group.kind] += 1
        names = group.member_ids or tuple(f"{group.id}/{place}" for place in range(len(group.members)))
        for advantage, turns, name in zip(advantages, group.members, names, strict=True):
            rows.extend(_policy_row(turn, advantage, group.id, name) for turn in turns)
    return RowBatch(rows=tuple(rows), kept=kept, dropped=dropped)


def cross_entropy_rows(
    turns: Iterable[Turn], weight: float = 1.0, group_id: str = "", trajectory_id: str = ""
) -> tuple[Row, ...]:
    """Rows that train known answers (likelihood mode): the turn's completion is the target, no advantage."""
    return tuple(
        Row(
            prompt_ids=turn.prompt_ids,
            completion_ids=turn.completion_ids,
            logprobs=(),
            advantage=0.0,
            weight=weight,
            group_id=group_id,
            trajectory_id=trajectory_id,
            step=turn.step,
            kind=turn.kind,
            loss="cross_entropy",
        )
        for turn in turns
    )


def _policy_row(turn: Turn, advantage: float, group_id: str, trajectory_id: str) -> Row:
    return Row(
        prompt_ids=turn.prompt_ids,
        completion_ids=turn.completion_ids,
        logprobs=turn.logprobs,
        advantage=advantage,
        group_id=group_id,
        trajectory_id=trajectory_id,
        step=turn.step,
        kind=turn.kind,
    )
