"""``draw.cpp`` behind tensors. Shapes: B rows, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from memtrain.engines.torch.native.build import INT, POINTER, function


def kernel() -> Any:
    """The compiled function, None where there is none."""
    return function("draw", *[POINTER] * 5, *[INT] * 2)


def usable(logits: torch.Tensor) -> bool:
    """Whether the kernel can be had, and takes these."""
    return logits.device.type == "cpu" and logits.dtype == torch.bfloat16 and kernel() is not None


def draw_native(
    logits: torch.Tensor, temperature_B: torch.Tensor, uniform_B1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, V) bfloat16, float32 temperatures, float64 numbers -> tokens (B,), log-probs (B,) float32."""
    rows, size = logits.shape
    logits = logits.contiguous()
    tokens, logprobs = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    kernel()(*(x.data_ptr() for x in (logits, uniform_B1, temperature_B, tokens, logprobs)), rows, size)
    return tokens, logprobs
