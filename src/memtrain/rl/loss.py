"""The joint objective on rows (MemTrain, arXiv 2606.03197, eq. 6; clipping as in PPO, arXiv 1707.06347, eq. 7).

    J = 1/Z sum_rows w_row sum_t [ v_t min(r_t A, clip(r_t, 1 - e_low, 1 + e_high) A) - beta k3_t ]  -  c CE
    r_t  = exp(log p_t - log p_old_t)
    v_t  = min(exp(log p_now_t - log p_sampler_t), C), a constant; 1 where C is 0
    k3_t = exp(log p_ref_t - log p_t) - (log p_ref_t - log p_t) - 1      (low-variance KL, Schulman 2020)

v_t is truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
training"): a sampler with kernels of its own draws from a distribution that is not quite the policy's, and v_t weighs
its tokens back. It multiplies the surrogate alone, a token at a time, as ``token_truncate`` in TRL and
``rollout_is = "token"`` in verl do.

Z is the number of conversations (paper) or of their completion tokens (released code), over the rows of the whole
update: micro-batches and workers only split the sums. End-to-end and recall rows enter alike; what couples the two
tasks is the reward (``rl/rewards.py``). CE is the mean cross-entropy per token over rows whose completion is known.

Shapes: T completion tokens of a micro-batch, row after row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memtrain.engines.base import LossConfig
from memtrain.types import Row

MAX_LOG_RATIO = 20.0
"""Log-ratios to the sampler are cut here, so that a token that the policy can hardly draw overflows nothing."""


@dataclass(frozen=True)
class RowCounts:
    """What the denominators are made of; counts of several workers add up to those of the whole update."""

    conversations: int = 0
    """Policy rows."""
    policy_tokens: int = 0
    """Completion tokens of policy rows."""
    known_tokens: int = 0
    """Completion tokens of cross-entropy rows."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> RowCounts:
        """Count over rows."""
        policy = [row for row in rows if row.loss == "policy"]
        known = sum(len(row.completion_ids) for row in rows if row.loss == "cross_entropy")
        return cls(len(policy), sum(len(row.completion_ids) for row in policy), known)

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(
            self.conversations + other.conversations,
            self.policy_tokens + other.policy_tokens,
            self.known_tokens + other.known_tokens,
        )


@dataclass(frozen=True)
class Normalisers:
    """Denominators of the whole update."""

    policy: float
    """Z."""
    cross_entropy: float
    """Completion tokens of all cross-entropy rows."""

    @classmethod
    def of(cls, rows: Sequence[Row], config: LossConfig) -> Normalisers:
        """Count over all rows."""
        return cls.from_counts(RowCounts.of(rows), config)

    @classmethod
    def from_counts(cls, counts: RowCounts, config: LossConfig) -> Normalisers:
        """At least 1, so that an empty side adds zero."""
        policy = counts.conversations if config.normaliser == "conversations" else counts.policy_tokens
        return cls(max(1, policy), max(1, counts.known_tokens))


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
    drift = ((logprobs.detach() - batch.sampler_logprobs) * batch.is_policy).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    sampler_ratio = torch.exp(drift)
    cap = config.importance_sampling_cap
    if cap > 0:
        surrogate = surrogate * sampler_ratio.clamp(max=cap)
    loss = -(policy * surrogate).sum() / z.policy
    stats = {
        "policy_tokens": float(batch.is_policy.sum()),
        "clipped": float((policy.bool() & (ratio * batch.advantages > clipped * batch.advantages)).sum()),
        "entropy": float((-logprobs.detach() * batch.is_policy).sum()),
        "sampler_gap": float(((logprobs.detach() - batch.sampler_logprobs).abs() * batch.is_policy).sum()),
        "sampler_kl": float((sampler_ratio - drift - 1).sum()),
        "sampler_ratio": float((sampler_ratio * batch.is_policy).sum()),
        "sampler_ratio_max": float((sampler_ratio * batch.is_policy).max()) if len(drift) else 0.0,
    }
    if cap > 0:
        stats["sampler_truncated"] = float(((sampler_ratio > cap) * batch.is_policy).sum())
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


def add_stats(sums: dict[str, float], part: dict[str, float]) -> None:
    """Add a micro-batch's statistics to the update's: largest values stay the largest, all others are summed."""
    for key, number in part.items():
        sums[key] = max(sums.get(key, 0.0), number) if key.endswith("_max") else sums.get(key, 0.0) + number


def update_metrics(sums: dict[str, float]) -> dict[str, float]:
    """What an update reports, from the sums over its micro-batches (and workers): means per token and counts."""
    policy, known = max(sums["policy_tokens"], 1.0), max(sums["known_tokens"], 1.0)
    metrics = {
        "loss": sums["loss"],
        "rows": float(sums["rows"]),
        "policy_tokens": sums["policy_tokens"],
        "clip_fraction": sums["clipped"] / policy,
        "entropy": sums["entropy"] / policy,
        "tokens_packed": float(sums["packed"]),
        "tokens_separate": float(sums["separate"]),
    } | mismatch_metrics(sums)
    if sums["known_tokens"]:
        metrics["cross_entropy"] = sums["cross_entropy"] / known
    if "kl" in sums:
        metrics["kl"] = sums["kl"] / policy
    return metrics


def mismatch_metrics(sums: dict[str, float]) -> dict[str, float]:
    """How far the sampler is from the policy it stands for, on the tokens it drew (before the update).

    ``sampler_gap``: mean |log p_policy - log p_sampler| in nats; ``sampler_kl``: KL(sampler || policy) by the k3
    estimate, nats a token; ``sampler_ratio`` and ``sampler_ratio_max``: mean (1 where all is well) and largest
    p_policy / p_sampler; ``sampler_truncated``: share of tokens whose weight the cap cut.
    """
    tokens = max(sums.get("policy_tokens", 0.0), 1.0)
    means = ("sampler_gap", "sampler_kl", "sampler_ratio", "sampler_truncated")
    found = {key: sums[key] / tokens for key in means if key in sums}
    return found | {key: sums[key] for key in ("sampler_ratio_max",) if key in sums}
