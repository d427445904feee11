"""The joint objective of ``rl/loss.py`` in the losses that the Tinker API has.

With r_t = exp(log p_t - log p_old_t), the API's losses are sums over the tokens of a request:

    importance_sampling  - r_t a_t                                        (Tinker documentation, "Loss functions")
    ppo                  - min(r_t a_t, clip(r_t, low, high) a_t)
    cispo                - sg(clip(r_t, low, high)) a_t log p_t
    cross_entropy        - w_t log p_t

so everything else of our objective goes into a_t and w_t, which are constants:

    a_t = w_row / Z * (v_t A - beta c_t / r_t)            w_t = c w_row / (known tokens)

A, w_row, Z, v_t, beta and c are those of ``rl/loss.py``. c_t stands for the KL term, which the API lacks:

    k3: c_t = 1 - p_ref / p          k1: c_t = log p - log p_ref

k3 is the derivative of the in-process engine's k3 by log p, so that the gradient of - r_t a_t is that of the joint loss
exactly, whatever r_t is where the update begins. k1 puts the KL into the reward (Schulman 2020, "Approximating KL
divergence"; tinker-cookbook subtracts it from advantages, centred on the batch mean): an unbiased estimate of the
gradient of KL(policy || reference).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from memtrain.engines.base import LossConfig
from memtrain.engines.tinker.datums import TokenRow, fill_up, policy_row, weighted_row
from memtrain.rl.loss import MAX_LOG_RATIO, Normalisers, TokenBatch, joint_loss
from memtrain.settings.tinker import TinkerSettings
from memtrain.types import Row

LogProbs = Sequence[Sequence[float]]
"""Per row its completion tokens' log-probs."""
Pass = tuple[list[TokenRow], str, dict[str, float] | None]
"""One forward_backward: its rows, the loss's name and its settings."""


def clip_range(loss: LossConfig, settings: TinkerSettings) -> dict[str, float] | None:
    """``loss_fn_config`` of the policy loss; None where it has none."""
    if settings.loss == "importance_sampling":
        return None
    return {"clip_low_threshold": 1 - loss.clip_low, "clip_high_threshold": 1 + loss.clip_high}


def token_advantages(
    row: Row,
    old: Sequence[float],
    now: Sequence[float] | None,
    reference: Sequence[float] | None,
    loss: LossConfig,
    z: Normalisers,
    settings: TinkerSettings,
) -> list[float]:
    """a_t of a policy row. ``now`` are the policy's log-probs before the update: needed with a KL or a cap."""
    values = []
    for t, old_logprob in enumerate(old):
        value = row.advantage
        if loss.importance_sampling_cap > 0 and now is not None:
            drift = max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, now[t] - row.logprobs[t]))
            value *= min(math.exp(drift), loss.importance_sampling_cap)
        if reference is not None and now is not None:
            gap = max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, now[t] - reference[t]))
            penalty = 1 - math.exp(-gap) if settings.kl_penalty == "k3" else gap
            ratio = math.exp(max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, now[t] - old_logprob)))
            if settings.loss == "cispo":
                ratio = max(1 - loss.clip_low, min(1 + loss.clip_high, ratio))
            value -= loss.kl_coef * penalty / ratio
        values.append(row.weight / z.policy * value)
    return values


def passes(
    rows: Sequence[Row],
    now: LogProbs | None,
    reference: LogProbs | None,
    loss: LossConfig,
    z: Normalisers,
    settings: TinkerSettings,
    reduction: str,
) -> list[Pass]:
    """The forward_backward calls of an update: one for policy rows, one for cross-entropy rows.

    ``now`` and ``reference`` belong to the policy rows, in order. A server that takes the mean over a sequence, then
    over all sequences of the step, gets values multiplied by both counts. Its ``cross_entropy`` divides by the weights
    as well, which would make every row weigh the same; ``cispo`` with both clips at 1 has the gradient of
    ``cross_entropy`` and no such division, and takes its place there.
    """
    policy = [row for row in rows if row.loss == "policy"]
    known = [row for row in rows if row.loss == "cross_entropy"]
    made = []
    for place, row in enumerate(policy):
        here = now[place] if now is not None else None
        # The ratio's gradient is taken at the policy's own log-probs: what "recompute" means.
        old = here if loss.old_logprobs == "recompute" and here is not None else row.logprobs
        wanted = reference[place] if reference is not None else None
        made.append(policy_row(row, old, token_advantages(row, old, here, wanted, loss, z, settings)))
    share = loss.cross_entropy_coef / z.cross_entropy
    targets = [weighted_row(row.prompt_ids, row.completion_ids, share * row.weight) for row in known]
    found: list[Pass] = []
    if made:
        found.append((fill_up(made, settings.rows_multiple), settings.loss, clip_range(loss, settings)))
    if targets:
        found.append((fill_up(targets, settings.rows_multiple), "cross_entropy", None))
    return undo_means(found) if reduction == "sequence-mean" else found


def undo_means(found: Sequence[Pass]) -> list[Pass]:
    """The same sum from a server that takes means (see :func:`passes`)."""
    count = sum(len(rows) for rows, _, _ in found)
    undone: list[Pass] = []
    for rows, name, config in found:
        scaled = []
        for row in rows:
            factor = float(len(row.targets) * count)
            worth = row.advantages if name != "cross_entropy" else row.weights
            zero = (0.0,) * len(row.targets)
            scaled.append(TokenRow(row.inputs, row.targets, row.logprobs or zero, tuple(factor * a for a in worth)))
        one = {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0}
        undone.append((scaled, "cispo", one) if name == "cross_entropy" else (scaled, name, config))
    return undone


@torch.no_grad()
def statistics(
    rows: Sequence[Row], now: LogProbs, reference: LogProbs | None, loss: LossConfig, z: Normalisers
) -> dict[str, float]:
    """Sums that ``rl.loss.update_metrics`` takes, by the in-process engine's own loss.

    ``now`` belongs to all rows, ``reference`` to the policy rows.
    """
    flat = torch.tensor([value for values in now for value in values], dtype=torch.float32)
    wanted = None
    if reference is not None:
        own = iter(reference)
        spread = [next(own) if row.loss == "policy" else [0.0] * len(row.completion_ids) for row in rows]
        wanted = torch.tensor([value for values in spread for value in values], dtype=torch.float32)
    value, stats = joint_loss(flat, TokenBatch.of(rows, flat.device), wanted, loss, z)
    size = float(sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows))
    return stats | {"loss": float(value), "rows": float(len(rows)), "packed": size, "separate": size}


def metric(metrics: Any, ending: str) -> float | None:
    """A server's metric by the end of its name (servers put prefixes of their own before it)."""
    for name, value in (metrics or {}).items():
        if str(name).endswith(ending):
            return float(value)
    return None
