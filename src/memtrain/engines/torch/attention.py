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
    if torch.compiler.is_compiling():
        number: Any = module.layer_number
        return torch.ops.memtrain.attend(query, key, value, number, scale, sliding_window, softcap, s_aux), None
    layer: Any = getattr(module, "layer_idx", 0)
    return _attend(query, key, value, layer, scale, sliding_window, softcap, s_aux), None


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """As the plan in force says."""
    if isinstance(_plan, DecodePlan):
        return decode_attention(_plan, layer, q, k, v, scale, window, softcap, sinks)
    # Without a plan: an ordinary causal call without padding.
    plan = _plan if _plan is not None else PackedPlan([q.shape[2]], [-1], [0])
    if plan.keep:
        plan.kept[layer] = (k.detach(), v.detach())
    return packed_attention(plan, q, k, v, scale, window, softcap=softcap, sinks=sinks)


def _attend_compiled(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: torch.Tensor, *rest: Any
) -> torch.Tensor:
    if isinstance(_plan, PackedPlan) and _plan.keep:  # a compiled graph uses its buffers again
        k, v = k.clone(), v.clone()
    return _attend(q, k, v, int(layer), *rest)


# To a compiled layer attention is one opaque operator, and its layer a tensor: all layers share one graph.
_library = torch.library.Library("memtrain", "FRAGMENT")
_library.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor layer, float scale, int? window, float? softcap, Tensor? sinks) "
    "-> Tensor"
)
for _device in ("CPU", "CUDA"):
    _library.impl("attend", _attend_compiled, _device)


@torch.library.register_fake("memtrain::attend", lib=_library)
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: torch.Tensor, *rest: Any) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
