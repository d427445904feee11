"""The joint objective on rows (MemTrain, arXiv 2606.03197, eq. 6; clipping as in PPO, arXiv 1707.06347, eq. 7).

    J = 1/Z sum_rows w_row sum_t [ min(r_t A, clip(r_t, 1 - e_low, 1 + e_high) A) - beta k3_t ]  -  c CE
    r_t  = exp(log p_t - log p_old_t)
    k3_t = exp(log p_ref_t - log p_t) - (log p_ref_t - log p_t) - 1      (low-variance KL, Schulman 2020)

Z is the number of conversations (paper) or of their completion tokens (released code), over the rows of the whole
update: micro-batches only split the sums. End-to-end and recall rows enter alike; what couples the two tasks is the
reward (``rl/rewards.py``). CE is the mean cross-entropy per token over rows whose completion is known.

Shapes: T completion tokens of a micro-batch, row after row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memtrain.engines.base import LossConfig
from memtrain.types import Row


@dataclass(frozen=True)
class Normalisers:
    """Denominators of the whole update."""

    policy: float
    """Z."""
    cross_entropy: float
    """Completion tokens of all cross-entropy rows."""

    @classmethod
    def of(cls, rows: Sequence[Row], config: LossConfig) -> Normalisers:
        """Count over all rows; at least 1, so that an empty side adds zero."""
        policy = [row for row in rows if row.loss == "policy"]
        tokens = sum(len(row.completion_ids) for row in policy)
        known = sum(len(row.completion_ids) for row in rows if row.loss == "cross_entropy")
        return cls(max(1, len(policy) if config.normaliser == "conversations" else tokens), max(1, known))


@dataclass
class TokenBatch:
    """Per-token constants of a micro-batch, all (T,) float32 on the model's device."""

    sampler_logprobs: torch.Tensor
    """Log-probs reported by the sampler; 0 on cross-entropy tokens."""
    advantages: torch.Tensor
    weights: torch.Tensor
    is_policy: torch.Tensor
    """1 on policy tokens, 0 on cross-entropy tokens."""

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> TokenBatch:
        """Spread row values over their completion tokens."""

        def spread(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        return cls(
            spread([p for r in rows for p in (r.logprobs if r.loss == "policy" else [0.0] * len(r.completion_ids))]),
            spread([r.advantage for r in rows for _ in r.completion_ids]),
            spread([r.weight for r in rows for _ in r.completion_ids]),
            spread([float(r.loss == "policy") for r in rows for _ in r.completion_ids]),
        )


def joint_loss(
    logprobs: torch.Tensor,
    batch: TokenBatch,
    reference: torch.Tensor | None,
    config: LossConfig,
    z: Normalisers,
) -> tuple[torch.Tensor, dict[str, float]]:
    """This micro-batch's share of the loss (a scalar to minimise) and summed statistics.

    ``logprobs`` (T,) carries the gradient; ``reference`` (T,) are log-probs of the start model, None without KL.
    With one update a rollout batch, the policy before the update is the policy itself: ``old_logprobs = "recompute"``
    takes the detached log-probs, which frees the ratio from the sampler's rounding; its gradient is that of PPO's
    first step.
    """
    old = batch.sampler_logprobs if config.old_logprobs == "sampler" else logprobs.detach()
    policy = batch.weights * batch.is_policy
    # Cross-entropy tokens have no old log-probs: keep their ratio at 1 so that nothing overflows.
    ratio = torch.exp((logprobs - old) * batch.is_policy)
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
    loss = -(policy * surrogate).sum() / z.policy
    stats = {
        "policy_tokens": float(batch.is_policy.sum()),
        "clipped": float((policy.bool() & (ratio * batch.advantages > clipped * batch.advantages)).sum()),
        "entropy": float((-logprobs.detach() * batch.is_policy).sum()),
        "sampler_gap": float(((logprobs.detach() - batch.sampler_logprobs).abs() * batch.is_policy).sum()),
    }
    if reference is not None:
        gap = (reference - logprobs) * batch.is_policy
        k3 = torch.exp(gap) - gap - 1
        loss = loss + config.kl_coef * (policy * k3).sum() / z.policy
        stats["kl"] = float((k3 * batch.is_policy).sum().detach())
    known = batch.weights * (1 - batch.is_policy)
    cross_entropy = -(known * logprobs).sum()
    loss = loss + config.cross_entropy_coef * cross_entropy / z.cross_entropy
    stats["known_tokens"] = float((1 - batch.is_policy).sum())
    stats["cross_entropy"] = float((-(1 - batch.is_policy) * logprobs).sum().detach())
    return loss, stats
