"""``packed_attention.cpp`` behind tensors. Shapes as in :mod:`memtrain.engines.torch.packed_attention`."""

from __future__ import annotations

from typing import Any

import torch

from memtrain.engines.torch.native.build import FLOAT, INT, POINTER, WIDE, fits, function
from memtrain.engines.torch.packed_plan import PackedPlan

MOST_REPEATS = 48
"""Query heads of a key head that one block of the kernel takes."""


def kernel() -> Any:
    """The compiled function, None where there is none."""
    return function("packed_attention", *[POINTER] * 7, *[INT] * 4, *[WIDE] * 4, FLOAT)


def usable(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether the kernel can be had, and takes these."""
    return q.dtype == k.dtype and q.shape[1] <= MOST_REPEATS * k.shape[1] and fits(k, v) and kernel() is not None


def packed_forward(
    plan: PackedPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, H, N, D), (1, K, N, D) twice -> (1, N, H, D) and log-sum-exps of the scaled scores (K, T), float32."""
    heads, tokens, size = q.shape[1:]
    kv_heads = k.shape[1]
    if q.stride(3) != 1:
        q = q.contiguous()
    if k.stride() != v.stride() or k.stride(3) != 1:
        k, v = k.contiguous(), v.contiguous()
    offsets, parents = plan.segments()
    out = q.new_empty(1, tokens, heads, size)
    lse = torch.empty(kv_heads, tokens * (heads // kv_heads))
    kernel()(
        *(tensor.data_ptr() for tensor in (q, k, v, offsets, parents, out, lse)),
        *(len(parents), kv_heads, heads // kv_heads, size),
        *(q.stride(1), q.stride(2), k.stride(1), k.stride(2)),
        scale,
    )
    return out, lse
