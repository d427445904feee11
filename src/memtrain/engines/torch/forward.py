"""One forward pass over a forest of shared prefixes, and log-probs where they are wanted.

Shapes: N packed tokens, T wanted positions, C hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from memtrain.engines.prefix_tree import PrefixTree, build_prefix_tree
from memtrain.engines.torch.attention import planned
from memtrain.engines.torch.head import token_logprobs
from memtrain.engines.torch.packed_plan import PackedPlan

if TYPE_CHECKING:
    from memtrain.engines.torch.model import LoadedModel


def packed_hidden(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], min_shared: int = 16
) -> tuple[torch.Tensor, PrefixTree]:
    """Hidden states (N, C) of all distinct prefixes of the rows, each computed once, and the tree."""
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


@dataclass(frozen=True)
class CompletionBatch:
    """Rows packed into one forest, and where their completions' log-probs come from; made once for several passes."""

    tree: PrefixTree
    """Of the rows without their last tokens, which predict nothing that is asked for; without rows that ask nothing."""
    index: list[int]
    """Packed positions (T) that predict the completion tokens, row after row."""
    target: list[int]
    """The completion tokens (T)."""

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], min_shared: int = 16
    ) -> CompletionBatch:
        """Pack rows; completions may be empty."""
        tree = build_prefix_tree([run_tokens(*pair) for pair in zip(prompts, completions, strict=True)], min_shared)
        index: list[int] = []
        target: list[int] = []
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            index += tree.packed_indices(number, len(prompt) - 1, len(prompt) - 1 + len(completion))
            target += completion
        return cls(tree, index, target)


def run_tokens(prompt: Sequence[int], completion: Sequence[int]) -> tuple[int, ...]:
    """What has to run for the log-probs of a completion."""
    return (*prompt, *completion)[:-1] if completion else ()


def completion_logprobs(loaded: LoadedModel, batch: CompletionBatch, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs (T,) of all completion tokens, row after row, in float32, differentiable.

    Logits are made at completion positions only and by blocks, so that they never stand in memory for a whole batch.
    """
    if not batch.target:
        return torch.zeros(0, device=loaded.device)
    hidden, _ = run_tree(loaded, batch.tree)
    hidden_TC = hidden[torch.tensor(batch.index, device=loaded.device)]
    return token_logprobs(loaded, hidden_TC, torch.tensor(batch.target, device=loaded.device), temperature)
