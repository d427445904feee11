"""``decode_attention.cpp`` behind tensors. Shapes as in :mod:`memtrain.engines.torch.decode_attention`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from memtrain.engines.torch.native.build import FLOAT, INT, POINTER, fits, function, library


def kernel() -> Any:
    """The compiled function, None where there is none."""
    return function("decode_attention", *[POINTER] * 5)


def kernel_milliseconds() -> tuple[float, float]:
    """What the kernel took so far: in its matrix products, and as a whole; zeros without it."""
    made = library("decode_attention")
    if made is None:
        return 0.0, 0.0
    products, whole = (ctypes.c_double * 2).in_dll(made, "memtrain_decode_nanoseconds")
    return products / 1e6, whole / 1e6


def usable(keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether the kernel can be had, and takes such keys and values."""
    return fits(keys, values) and kernel() is not None


class _Layer(ctypes.Structure):
    """``Layer`` of the kernel."""

    _fields_ = (
        *((name, POINTER) for name in ("own_k", "own_v", "prefix_k", "prefix_v")),
        *((name, POINTER) for name in ("own_lengths", "row_of", "prefix_lengths", "prefix_out", "prefix_lse")),
        *((name, INT) for name in ("slots", "kv_heads", "repeats", "size", "own_room", "rows", "prefix_room")),
        ("scale", FLOAT),
    )


class DecodeKernel:
    """The kernel for caches, lengths and rows that stay in the same tensors from step to step."""

    def __init__(self, own_lengths_B: torch.Tensor, row_B: torch.Tensor, prefix_lengths_G: torch.Tensor):
        """int64 on the CPU, contiguous."""
        self._kernel = kernel()
        self._state = (own_lengths_B, row_B, prefix_lengths_G)  # their memory is read through bare pointers
        self._layers: dict[int, tuple[_Layer, Any, Any]] = {}
        self._scratch: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        caches: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        scale: float,
    ) -> torch.Tensor:
        """q (B, H, 1, D), k and v (B, K, 1, D) -> (B, 1, H, D); stores k and v.

        ``caches`` are the layer's :class:`LayerCache`, whose keys lie row by row in memory; always the same.
        """
        slots, heads, _, size = q.shape
        if layer not in self._layers:
            told = self._describe(slots, heads, size, caches, scale)
            self._layers[layer] = told, ctypes.addressof(told), caches
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = q.new_empty(slots, 1, heads, size)
        self._kernel(self._layers[layer][1], q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr())
        return out

    def _describe(self, slots: int, heads: int, size: int, caches: Any, scale: float) -> _Layer:
        prefix_k, prefix_v, own_k, own_v = caches
        shape = (slots, heads, size)
        if shape not in self._scratch:  # one for all layers of a shape
            self._scratch[shape] = torch.empty(shape), torch.empty(shape[:2])
        tensors = (own_k, own_v, prefix_k, prefix_v, *self._state, *self._scratch[shape])
        kv_heads, own_room = own_v.shape[1:3]
        sizes = (slots, kv_heads, heads // kv_heads, size, own_room, prefix_v.shape[0], prefix_v.shape[2])
        return _Layer(*(tensor.data_ptr() for tensor in tensors), *sizes, scale)
