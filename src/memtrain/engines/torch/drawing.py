"""One token a row from logits, with its log-prob, in as few passes over the vocabulary as that takes.

Shapes: B rows, V vocabulary, C tokens a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memtrain.engines.torch.native import sample as native
from memtrain.types import SamplingParams

BLOCK = 128
"""C: a cumulative sum over V/C blocks and one over C tokens replace one over the vocabulary."""


@dataclass(frozen=True)
class DrawPlan:
    """How each row is drawn; what no row needs is known beforehand, so nothing waits for the device."""

    temperature_B: torch.Tensor
    top_p_B: torch.Tensor
    any_greedy: bool
    any_scaled: bool
    any_nucleus: bool

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> DrawPlan:
        """One row for each set of parameters."""
        return cls(
            torch.tensor([p.temperature for p in params], device=device),
            torch.tensor([p.top_p for p in params], device=device),
            any(p.temperature == 0 for p in params),
            any(p.temperature not in (0, 1) for p in params),
            any(p.top_p < 1 for p in params),
        )

    def fill(self, other: DrawPlan) -> bool:
        """Take over another plan in this one's tensors; False where it needs what this one leaves out."""
        mine, theirs = ((p.any_greedy, p.any_scaled, p.any_nucleus) for p in (self, other))
        if self.temperature_B.shape != other.temperature_B.shape or any(
            b and not a for a, b in zip(mine, theirs, strict=True)
        ):
            return False
        self.temperature_B.copy_(other.temperature_B)
        self.top_p_B.copy_(other.top_p_B)
        return True


def uniform(rows: int, generator: torch.Generator) -> torch.Tensor:
    """(B, 1) float64 numbers in [0, 1), drawn on the CPU so that one seed gives one stream on every device."""
    return torch.rand(rows, 1, generator=generator, dtype=torch.float64)


def draw(logits: torch.Tensor, plan: DrawPlan, uniform_B1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one token a row: (B, V) -> tokens (B,), log-probs (B,) float32 under the sampling distribution.

    Inverse transform sampling: one uniform number a row finds its block of the vocabulary, then its token. A
    temperature of 0 takes the largest logit and reports its log-prob at temperature 1.
    """
    if not plan.any_nucleus and native.usable(logits):
        return native.draw_native(logits, plan.temperature_B, uniform_B1)
    logits = logits.float()
    greedy = plan.temperature_B == 0
    if plan.any_scaled:
        logits = logits / torch.where(greedy, 1.0, plan.temperature_B)[:, None]
    if plan.any_nucleus:
        logits = _keep_nucleus(logits, plan.top_p_B)
    probs = logits.softmax(-1)
    rows, size = probs.shape
    tail = -size % BLOCK
    blocks = (torch.nn.functional.pad(probs, (0, tail)) if tail else probs).view(rows, -1, BLOCK)
    # Sums of float32 probabilities err by about 1e-7 of the whole; float64 only where it is a few hundred numbers.
    ends = blocks.sum(-1).double().cumsum(-1)
    # A number too near 1 could round to the whole sum, which lies behind the last block that has any mass.
    target = uniform_B1.clamp(max=1 - 2.0**-50) * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].double().cumsum(-1)
    # Rounding may leave the target at or above the block's own sum: the last token with any mass is meant then.
    rest = torch.minimum(target - before, inside[:, -1:] * (1 - 1e-12))
    place = torch.searchsorted(inside, rest, right=True).clamp_(max=BLOCK - 1)
    tokens = (block * BLOCK + place)[:, 0]
    if plan.any_greedy:
        tokens = torch.where(greedy, probs.argmax(-1), tokens)
    return tokens, probs.gather(1, tokens[:, None])[:, 0].log()


def _keep_nucleus(logits: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Set logits outside the smallest set with mass top_p to -inf."""
    ordered, index = logits.sort(-1, descending=True)
    probs = ordered.softmax(-1)
    # A token is out when the mass before it already reaches top_p; the first always stays.
    out = probs.cumsum(-1) - probs >= top_p_B[:, None]
    return logits.masked_fill(torch.zeros_like(out).scatter(1, index, out), float("-inf"))
