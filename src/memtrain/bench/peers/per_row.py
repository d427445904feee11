"""Plain training with transformers: every row by itself, padded to its neighbours, the same loss and optimiser as ours.

What a careful user would write: rows sorted by length, micro-batches by a budget of padded tokens, SDPA attention,
logits at completion tokens only. Log-ratios, clipping, KL and AdamW are our own code, so that only the passes differ.

Shapes: B rows, L longest row, T completion tokens of a micro-batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.torch.optimiser import MasterAdamW
from memtrain.rl.loss import Normalisers, TokenBatch, joint_loss
from memtrain.types import Row


class PerRowTrainer:
    """One update after another on a stock model; ``reference`` is a frozen copy for the KL term."""

    def __init__(self, model: Any, reference: Any | None, micro_batch_tokens: int):
        self.model, self.reference, self.micro_batch_tokens = model, reference, micro_batch_tokens
        self.optimiser = MasterAdamW(model.named_parameters())

    def update(self, rows: Sequence[Row], loss: LossConfig, optimiser: OptimiserConfig) -> dict[str, float]:
        """One optimiser step; returns loss, gradient norm and padded tokens."""
        total, padded = self.backward(rows, loss)
        return {"loss": total, "grad_norm": self.optimiser.step(optimiser), "tokens_padded": float(padded)}

    def backward(self, rows: Sequence[Row], config: LossConfig) -> tuple[float, int]:
        """Accumulate the gradient of all rows."""
        z, total, padded = Normalisers.of(rows, config), 0.0, 0
        for part in micro_batches(rows, self.micro_batch_tokens):
            padded += len(part) * max(_length(row) for row in part)
            anchor = None
            if config.kl_coef > 0:
                with torch.no_grad():
                    anchor = completion_logprobs(self.reference, part, config.temperature)
            logprobs = completion_logprobs(self.model, part, config.temperature)
            value, _ = joint_loss(logprobs, TokenBatch.of(part, self.model.device), anchor, config, z)
            value.backward()
            total += float(value.detach())
        return total, padded


def micro_batches(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Rows by falling length, cut so that no micro-batch has more than ``budget`` tokens, padding included."""
    batches: list[list[Row]] = []
    for row in sorted((row for row in rows if row.completion_ids), key=_length, reverse=True):
        if batches and (len(batches[-1]) + 1) * _length(batches[-1][0]) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def completion_logprobs(model: Any, rows: Sequence[Row], temperature: float) -> torch.Tensor:
    """Log-probs (T,) of the completions, row after row; differentiable."""
    longest = max(_length(row) for row in rows)
    device = model.device
    ids = [[*row.prompt_ids, *row.completion_ids, *[0] * (longest - _length(row))] for row in rows]
    mask = [[1] * _length(row) + [0] * (longest - _length(row)) for row in rows]
    ids_BL, mask_BL = torch.tensor(ids, device=device), torch.tensor(mask, device=device)
    hidden = model.get_decoder()(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
    places = [
        number * longest + place
        for number, row in enumerate(rows)
        for place in range(len(row.prompt_ids) - 1, _length(row) - 1)
    ]
    hidden_T = hidden.flatten(0, 1)[torch.tensor(places, device=device)]
    logits_TV = model.get_output_embeddings()(hidden_T).float() / temperature
    target_T = torch.tensor([token for row in rows for token in row.completion_ids], device=device)
    return logits_TV.gather(1, target_T[:, None])[:, 0] - logits_TV.logsumexp(-1)


def _length(row: Row) -> int:
    return len(row.prompt_ids) + len(row.completion_ids)
