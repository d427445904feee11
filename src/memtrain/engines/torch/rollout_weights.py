"""What the linear layers compute with while sampling: the policy's own weights, in the form that is fastest to read.

A LoRA adapter is merged into a copy of the weights it changes (so the base stays bit-identical), and on a CPU weights
of bfloat16 are laid out once for oneDNN's kernels instead of anew in every call: the same numbers, 1.2 to 1.7 times
faster for 16 to 2,048 rows on 2 cores with AVX512-BF16. One copy of the weights stands beside the model while it
samples; an update drops it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]


class RolloutWeights:
    """Stands in for the weights of one state of the policy; make a new one after every change."""

    def __init__(self, model: nn.Module):
        """Merge and lay out; the model itself stays as it is."""
        self._forwards: list[tuple[nn.Module, Forward]] = []
        self._merged: list[tuple[nn.Parameter, torch.Tensor]] = []
        inner: set[nn.Module] = set()
        with torch.no_grad():
            for module in model.modules():
                if is_lora(module):
                    base: Any = module.base_layer
                    inner.update(module.modules())
                    weight = merged_weight(module)
                    forward = _laid_out(base, weight)
                    if forward is None:
                        self._merged.append((base.weight, weight))
                        forward = base.forward
                    self._forwards.append((module, forward))
                elif type(module) is nn.Linear and module not in inner:
                    forward = _laid_out(module, module.weight)
                    if forward is not None:
                        self._forwards.append((module, forward))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The model samples with these weights inside; afterwards it is what it was."""
        kept = [(parameter, parameter.data) for parameter, _ in self._merged]
        try:
            for parameter, weight in self._merged:
                parameter.data = weight
            for module, forward in self._forwards:
                module.forward = forward
            yield
        finally:
            for module, _ in self._forwards:
                module.__dict__.pop("forward", None)
            for parameter, data in kept:
                parameter.data = data


def is_lora(module: nn.Module) -> bool:
    """Whether a peft layer stands around the module's own."""
    return hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")


def merged_weight(module: Any) -> torch.Tensor:
    """Weight of a LoRA layer's base plus all active adapters, summed in float32 and rounded once."""
    weight = module.base_layer.weight
    total = weight.float()
    for adapter in module.active_adapters:
        if adapter in module.lora_A:
            total = total + module.get_delta_weight(adapter).float()
    return total.to(weight.dtype)


def _laid_out(linear: nn.Module, weight: torch.Tensor) -> Forward | None:
    """The layer's forward pass on a weight in oneDNN's own layout, None where that is not to be had."""
    ops = torch.ops.mkldnn
    if type(linear) is not nn.Linear or weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return None
    if not torch.backends.mkldnn.is_available() or not ops._is_mkldnn_bf16_supported():
        return None
    bias = linear.bias
    try:
        packed = ops._reorder_linear_weight(weight.detach())
    except (AttributeError, RuntimeError):  # a build without these kernels
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        return ops._linear_pointwise(x, packed, bias, "none", [], "")

    return forward
