"""``decode_attention.cpp`` behind tensors. Shapes as in :mod:`memtrain.engines.torch.decode_attention`."""

from __future__ import annotations

from typing import Any

import torch

from memtrain.engines.torch.native.build import FLOAT, INT, POINTER, fits, function


def kernel() -> Any:
    """The compiled function, None where there is none."""
    return function("decode_attention", *[POINTER] * 13, *[INT] * 7, FLOAT)


def usable(keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether the kernel can be had, and takes such keys and values."""
    return fits(keys, values) and kernel() is not None


class DecodeKernel:
    """The kernel for slots whose lengths and rows stay in the same tensors from layer to layer."""

    def __init__(self, own_lengths_B: torch.Tensor, row_B: torch.Tensor, prefix_lengths_G: torch.Tensor):
        """int64 on the CPU, contiguous."""
        self._kernel = kernel()
        self._kept = (own_lengths_B, row_B, prefix_lengths_G)  # their memory is read through bare pointers
        self._state = [tensor.data_ptr() for tensor in self._kept]
        self._scratch: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        caches: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        scale: float,
    ) -> torch.Tensor:
        """q (B, H, 1, D), k and v (B, K, 1, D) -> (B, 1, H, D); stores k and v.

        ``caches`` are a :class:`LayerCache` whose keys lie row by row in memory.
        """
        prefix_k, prefix_v, own_k, own_v = caches
        slots, heads, _, size = q.shape
        kv_heads, own_room = own_v.shape[1], own_v.shape[2]
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty(slots, 1, heads, size, dtype=q.dtype)
        if self._scratch is None or self._scratch[0].numel() < slots * heads * size:
            self._scratch = torch.empty(slots * heads * size), torch.empty(slots * heads)
        self._kernel(
            *(tensor.data_ptr() for tensor in (q, k, v, own_k, own_v, prefix_k, prefix_v)),
            *self._state,
            *(tensor.data_ptr() for tensor in (*self._scratch, out)),
            *(slots, kv_heads, heads // kv_heads, size, own_room, prefix_v.shape[0], prefix_v.shape[2]),
            scale,
        )
        return out
