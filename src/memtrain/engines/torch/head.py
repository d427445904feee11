"""Log-probs of tokens from hidden states: output head and log-softmax, by blocks of the vocabulary.

Shapes: T positions, C hidden size, V vocabulary, b tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from memtrain.engines.torch.model import LoadedModel

BLOCK_LOGITS = 1 << 22
"""About as many logits stand in memory at a time: 8 MiB in bfloat16, so that the passes over them stay in the cache."""
CHUNK_LOGITS = 1 << 26
"""The same for heads that run through autograd: 256 MiB in float32."""


def token_logprobs(
    loaded: LoadedModel, hidden_TC: torch.Tensor, target_T: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Log-softmax of the logits at the targets: (T, C), (T,) -> (T,) float32, differentiable."""
    head = loaded.base.get_output_embeddings()
    if loaded.logit_cap is None and type(head) is torch.nn.Linear and head.bias is None:
        return _HeadLogprobs.apply(hidden_TC, head.weight, target_T, loaded.logit_scale / temperature)

    def chunk(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = loaded.logits(hidden).float() / temperature
        return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)

    size = max(1, CHUNK_LOGITS // head.weight.shape[0])
    pairs = zip(hidden_TC.split(size), target_T.split(size), strict=True)
    return torch.cat([checkpoint(chunk, *pair, use_reentrant=False) for pair in pairs])


class _HeadLogprobs(torch.autograd.Function):
    """Logits are made, used and overwritten block by block, and made anew in the backward pass.

    d(log p_target) / d(logits) = onehot - softmax. The softmax is kept as exponentials of what lies below the row's
    maximum; everything else about a row is one float32 factor, applied to (T, C) operands instead of (T, V) ones.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, scale: float
    ) -> torch.Tensor:
        top = hidden.new_full((len(hidden),), float("-inf"))
        total = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        chosen = torch.zeros_like(total)
        for block, rows, columns in _blocks(target, len(weight)):
            logits = hidden @ weight[block].T
            chosen[rows] = logits[rows, columns].float()
            before, top = top, torch.maximum(top, row_max(logits))
            total.mul_(((before.float() - top.float()) * scale).exp_())
            total += _exponentials(logits, top, scale).sum(-1, dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, target, top, total)
        ctx.scale = scale
        return (chosen - top.float()).mul_(scale).sub_(total.log())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        hidden, weight, target, top, total = ctx.saved_tensors
        factor = (grads[0] * ctx.scale / -total)[:, None]
        scaled_hidden = (hidden.float() * factor).to(hidden.dtype)
        grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for block, rows, columns in _blocks(target, len(weight)):
            slopes = _exponentials(hidden @ weight[block].T, top, ctx.scale)
            slopes[rows, columns] = (slopes[rows, columns].float() - total[rows]).to(slopes.dtype)
            grad_hidden += slopes @ weight[block]
            if grad_weight is not None:
                torch.mm(slopes.T, scaled_hidden, out=grad_weight[block])
        return grad_hidden.mul_(factor).to(hidden.dtype), grad_weight, None, None


def _blocks(target: torch.Tensor, vocabulary: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Blocks of the vocabulary, with the positions whose target lies in them and where it lies."""
    size = max(256, BLOCK_LOGITS // max(1, len(target)))
    for low in range(0, vocabulary, size):
        rows = ((target >= low) & (target < low + size)).nonzero()[:, 0]
        yield slice(low, min(low + size, vocabulary)), rows, target[rows] - low


def _exponentials(logits: torch.Tensor, top: torch.Tensor, scale: float) -> torch.Tensor:
    """exp(scale * (logits - top)), in place."""
    logits.sub_(top[:, None])
    return (logits if scale == 1.0 else logits.mul_(scale)).exp_()


def row_max(scores: torch.Tensor) -> torch.Tensor:
    """Largest of each row, (…, m) -> (…).

    Floats of one sign are ordered as their bits are: upwards where positive, downwards where negative. On a CPU torch
    compares 16-bit integers five times as fast as bfloat16.
    """
    if scores.element_size() != 2 or scores.device.type != "cpu":
        return scores.amax(-1)
    bits = scores.view(torch.int16)
    largest = bits.amax(-1)
    if bool((largest < 0).any()):  # nothing positive in a row: there the smallest bits belong to the largest
        largest = torch.where(largest < 0, bits.amin(-1), largest)
    return largest.view(scores.dtype)
