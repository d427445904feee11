"""One forward pass over a forest of shared prefixes, and log-probs where they are wanted.

Shapes: N packed tokens, T wanted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from memtrain.engines.prefix_tree import PrefixTree, build_prefix_tree
from memtrain.engines.torch.attention import PackedPlan, planned

if TYPE_CHECKING:
    from memtrain.engines.torch.model import LoadedModel

LOGITS_AT_ONCE = 1 << 26
"""Most logits (positions x vocabulary) that stand in memory at a time: 256 MiB in float32."""


def packed_hidden(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], min_shared: int = 16
) -> tuple[torch.Tensor, PrefixTree]:
    """Hidden states (N, hidden) of all distinct prefixes of the rows, each computed once, and the tree."""
    tree = build_prefix_tree(rows, min_shared)
    hidden, _ = run_tree(loaded, tree)
    return hidden, tree


def run_tree(loaded: LoadedModel, tree: PrefixTree, keep: bool = False) -> tuple[torch.Tensor, PackedPlan]:
    """Run a prefix tree as one packed sequence; with ``keep`` the plan holds keys and values afterwards."""
    plan = PackedPlan.of(tree, keep)
    tokens = [token for segment in tree.segments for token in segment.tokens]
    positions = [p for segment in tree.segments for p in range(segment.start, segment.start + len(segment.tokens))]
    input_ids = torch.tensor([tokens], device=loaded.device)
    position_ids = torch.tensor([positions], device=loaded.device)
    with planned(plan):
        output = loaded.decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False)
    return output.last_hidden_state[0], plan


def completion_logprobs(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
    min_shared: int = 16,
) -> torch.Tensor:
    """Log-probs (T,) of all completion tokens, row after row, in float32, differentiable.

    Logits are computed at completion positions only and by chunks, recomputed in the backward pass, so that they never
    stand in memory for a whole batch.
    """
    # The last token predicts nothing that is asked for, so it is not run; nor is a prompt without a completion.
    pairs = list(zip(prompts, completions, strict=True))
    rows = [(*prompt, *completion)[:-1] if completion else () for prompt, completion in pairs]
    if not any(rows):
        return torch.zeros(0, device=loaded.device)
    hidden, tree = packed_hidden(loaded, rows, min_shared)
    index: list[int] = []
    target: list[int] = []
    for number, (prompt, completion) in enumerate(pairs):
        index += tree.packed_indices(number, len(prompt) - 1, len(prompt) - 1 + len(completion))
        target += completion
    hidden_T = hidden[torch.tensor(index, device=loaded.device)]
    target_T = torch.tensor(target, device=loaded.device)
    return token_logprobs(loaded, hidden_T, target_T, temperature)


def token_logprobs(
    loaded: LoadedModel, hidden_T: torch.Tensor, target_T: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Log-softmax of the logits at the targets: (T, hidden), (T,) -> (T,) float32."""
    head = loaded.base.get_output_embeddings()
    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    pairs = list(zip(hidden_T.split(size), target_T.split(size), strict=True))
    if loaded.logit_cap is None and type(head) is torch.nn.Linear and head.bias is None:
        scale = loaded.logit_scale / temperature
        return torch.cat([_HeadLogprobs.apply(hidden, head.weight, target, scale) for hidden, target in pairs])

    def chunk(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = loaded.logits(hidden).float() / temperature
        return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)

    return torch.cat([checkpoint(chunk, *pair, use_reentrant=False) for pair in pairs])


class _HeadLogprobs(torch.autograd.Function):
    """Output head and log-softmax at the targets in one step: logits are made anew in the backward pass, in place.

    Plain autograd makes five float32 copies of (T, V); on a CPU those passes cost more than the products.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, scale: float
    ) -> torch.Tensor:
        logits = (hidden @ weight.T).float().mul_(scale)
        lse = logits.logsumexp(-1)
        ctx.save_for_backward(hidden, weight, target, lse)
        ctx.scale = scale
        return logits.gather(1, target[:, None])[:, 0] - lse

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        hidden, weight, target, lse = ctx.saved_tensors
        grad = grads[0] * ctx.scale
        logits = (hidden @ weight.T).float().mul_(ctx.scale)
        # d/dz [z_target - logsumexp z] = onehot - softmax
        slope = logits.sub_(lse[:, None]).exp_().mul_(-grad[:, None])
        slope.scatter_add_(1, target[:, None], grad[:, None])
        slope = slope.to(weight.dtype)
        grad_weight = slope.T @ hidden if ctx.needs_input_grad[1] else None
        return slope @ weight, grad_weight, None, None
