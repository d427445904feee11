"""Attention over prefix trees, plugged into transformers' attention interface.

Two plans say what a forward pass means; the model itself is untouched transformers code.

* :class:`PackedPlan`: one packed sequence holds a forest of shared prefixes; a segment attends to its ancestors and,
  causally, to itself. Exact: the same numbers as separate rows, with gradients, up to rounding.
* :class:`DecodePlan`: one new token for every slot; a slot attends to its group's prefix, whose keys and values are
  stored once, and to its own.

Shapes: N packed tokens, B slots, M slots a group, H query heads, K key-value heads, R = H / K, D head size, P prefix
length, S own length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from memtrain.engines.torch.decode_attention import DecodePlan, decode_attention
from memtrain.engines.torch.packed_attention import packed_attention
from memtrain.engines.torch.packed_plan import PackedPlan

NAME = "memtrain"
"""Name under which the function is registered with transformers."""


Plan = PackedPlan | DecodePlan | None
_plan: Plan = None


@contextlib.contextmanager
def planned(plan: Plan) -> Iterator[None]:
    """Run forward passes under a plan. A plain global: the engine runs one forward pass at a time."""
    global _plan
    before, _plan = _plan, plan
    try:
        yield
    finally:
        _plan = before


def checkpoint_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """For gradient checkpointing: a layer runs anew in the backward pass, when its plan is no longer in force."""
    return contextlib.nullcontext(), planned(_plan)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls in every layer; query (batch, H, L, D), result (batch, L, H, D)."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    extras: dict[str, Any] = {"softcap": softcap, "sinks": s_aux}
    if isinstance(_plan, DecodePlan):
        layer: int = module.layer_idx  # type: ignore[assignment]
        return decode_attention(_plan, layer, query, key, value, scale, sliding_window, **extras), None
    if isinstance(_plan, PackedPlan):
        if _plan.keep:
            _plan.kept[module.layer_idx] = (key.detach(), value.detach())  # type: ignore[index]
        return packed_attention(_plan, query, key, value, scale, sliding_window, **extras), None
    plain = PackedPlan([query.shape[2]], [-1], [0])  # an ordinary causal call without padding
    return packed_attention(plain, query, key, value, scale, sliding_window, **extras), None
