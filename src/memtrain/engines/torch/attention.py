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
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from memtrain.engines.prefix_tree import PrefixTree

NAME = "memtrain"
"""Name under which the function is registered with transformers."""


@dataclass
class PackedPlan:
    """Attention structure of one packed forward pass."""

    lengths: list[int]
    """Tokens of each segment."""
    ancestors: list[list[int]]
    """For each segment the segments before it, root first."""
    starts: list[int]
    """Position of each segment's first token."""
    keep: bool = False
    """Keep keys and values (for decoding) in ``kept``."""
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Layer -> keys, values, each (1, K, N, D), after rotary embedding."""
    masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)
    """Masks already made, by (queries, keys, window)."""

    @classmethod
    def of(cls, tree: PrefixTree, keep: bool = False) -> PackedPlan:
        """The plan of a prefix tree."""
        count = range(len(tree.segments))
        return cls(
            lengths=[len(segment.tokens) for segment in tree.segments],
            ancestors=[tree.ancestors(index) for index in count],
            starts=[segment.start for segment in tree.segments],
            keep=keep,
        )

    def mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Boolean (queries, keys): the last ``queries`` keys are the queries' own; True may be attended to."""
        if (queries, keys, window) not in self.masks:
            position_q = torch.arange(keys - queries, keys, device=device)[:, None]
            position_k = torch.arange(keys, device=device)[None, :]
            mask = position_k <= position_q
            if window is not None:
                mask &= position_q - position_k < window
            self.masks[queries, keys, window] = mask
        return self.masks[queries, keys, window]


@dataclass
class DecodePlan:
    """Keys and values of a batch of slots that decode together; slots lie group by group, M each."""

    prefix: dict[int, tuple[torch.Tensor, torch.Tensor]]
    """Layer -> keys, values of the groups' prefixes, each (groups, K, P, D), padded at the right."""
    own: dict[int, tuple[torch.Tensor, torch.Tensor]]
    """Layer -> keys, values of the slots, each (B, K, S_max, D), filled up to ``length``."""
    prefix_lengths_G: torch.Tensor
    """Valid prefix tokens of each group."""
    own_lengths_B: torch.Tensor
    """Valid own tokens of each slot, before this step's token."""
    length: int = 0
    """Upper bound of ``own_lengths_B`` + 1: how much of the own cache one step looks at."""
    bias_prefix: torch.Tensor | None = None
    """(groups, 1, 1, P) additive mask, None where no prefix is padded."""
    bias_own: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """(B, 1, 1, S) additive mask of this step."""
    rows: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """0..B-1."""

    def begin_step(self) -> None:
        """Prepare the masks of the next token; call before the forward pass."""
        self.length = int(self.own_lengths_B.max()) + 1
        self.rows = torch.arange(len(self.own_lengths_B), device=self.own_lengths_B.device)
        position_S = torch.arange(self.length, device=self.own_lengths_B.device)
        dead = position_S[None, :] > self.own_lengths_B[:, None]
        self.bias_own = torch.zeros(dead.shape, device=dead.device).masked_fill_(dead, float("-inf"))[:, None, None]

    def end_step(self) -> None:
        """The new token now belongs to every slot's own part."""
        self.own_lengths_B += 1


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
        return _decode(_plan, layer, query, key, value, scale, sliding_window, **extras), None
    if isinstance(_plan, PackedPlan):
        if _plan.keep:
            _plan.kept[module.layer_idx] = (key.detach(), value.detach())  # type: ignore[index]
        return _packed(_plan, query, key, value, scale, sliding_window, **extras), None
    plain = PackedPlan([query.shape[2]], [[]], [0])  # an ordinary causal call without padding
    return _packed(plain, query, key, value, scale, sliding_window, **extras), None


def _packed(
    plan: PackedPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None, **extras: Any
) -> torch.Tensor:
    """Segment by segment; ``split`` keeps the backward pass to one concatenation."""
    queries, keys, values = (tensor.split(plan.lengths, dim=2) for tensor in (q, k, v))
    results = []
    for index, chain in enumerate(plan.ancestors):
        full_k = torch.cat([*(keys[a] for a in chain), keys[index]], dim=2) if chain else keys[index]
        full_v = torch.cat([*(values[a] for a in chain), values[index]], dim=2) if chain else values[index]
        length, total = plan.lengths[index], full_k.shape[2]
        narrow = window if window is not None and window < total else None
        results.append(_attend(plan, queries[index], full_k, full_v, length, total, scale, narrow, **extras))
    return torch.cat(results, dim=2).transpose(1, 2)


def _attend(
    plan: PackedPlan,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    length: int,
    total: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    causal = length == total and window is None
    if softcap is None and sinks is None:
        mask = None if causal else plan.mask(length, total, window, q.device)
        # Repeating heads by hand: the masked kernels of some devices do not take grouped heads.
        k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
    scores = (q @ k.transpose(2, 3) * scale).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~plan.mask(length, total, window, q.device), float("-inf"))
    if sinks is not None:
        sink = sinks.float().reshape(1, -1, 1, 1).expand(scores.shape[0], -1, length, 1)
        scores = torch.cat([scores, sink], dim=-1)
    return scores.softmax(-1)[..., :total].to(v.dtype) @ v


def _repeat(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, K, L, D) -> (batch, heads, L, D)."""
    repeats = heads // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _decode(
    plan: DecodePlan,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One token a slot: a product with the shared prefix, a product with the own part, one softmax over both."""
    slots, heads, _, size = q.shape
    own_k, own_v = plan.own[layer]
    kv_heads, length = own_k.shape[1], plan.length
    own_k[plan.rows, :, plan.own_lengths_B] = k[:, :, 0]
    own_v[plan.rows, :, plan.own_lengths_B] = v[:, :, 0]
    q_BKRD = q.view(slots, kv_heads, heads // kv_heads, size) * scale
    # Scores stay in the compute type, as in transformers' eager attention; the softmax runs in float32.
    scores = q_BKRD @ own_k[:, :, :length].transpose(2, 3)
    scores = _capped(scores, softcap).add_(plan.bias_own)
    prefix_k, prefix_v = plan.prefix[layer]
    groups, _, prefix_length, _ = prefix_k.shape
    members = slots // groups
    if prefix_length:
        # (groups, K, M * R, D): all slots of a group are rows of one product with the prefix.
        q_group = q_BKRD.view(groups, members, kv_heads, -1, size).transpose(1, 2).reshape(groups, kv_heads, -1, size)
        shared = _capped(q_group @ prefix_k.transpose(2, 3), softcap)
        if plan.bias_prefix is not None:
            shared.add_(plan.bias_prefix)
        shared = shared.view(groups, kv_heads, members, -1, prefix_length).transpose(1, 2)
        scores = torch.cat([scores, shared.reshape(slots, kv_heads, -1, prefix_length)], dim=-1)
    if window is not None:
        scores = scores + _window_bias(plan, members, prefix_length, window)
    if sinks is not None:
        sink = sinks.float().view(1, kv_heads, -1, 1).expand(slots, -1, -1, 1)
        weights = torch.cat([scores.float(), sink], dim=-1).softmax(-1)[..., :-1].to(q.dtype)
    else:
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    out = weights[..., :length] @ own_v[:, :, :length]
    if prefix_length:
        w_group = weights[..., length:].view(groups, members, kv_heads, -1, prefix_length)
        w_group = w_group.transpose(1, 2).reshape(groups, kv_heads, -1, prefix_length)
        part = (w_group @ prefix_v).view(groups, kv_heads, members, -1, size).transpose(1, 2)
        out = out + part.reshape(slots, kv_heads, -1, size)
    return out.reshape(slots, 1, heads, size)


def _capped(scores: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Soft cap of the attention scores (Gemma 2), in float32."""
    return scores if cap is None else torch.tanh(scores.float() / cap) * cap


def _window_bias(plan: DecodePlan, members: int, prefix_length: int, window: int) -> torch.Tensor:
    """(B, 1, 1, S + P) additive mask of a sliding window: keys ``window`` or more tokens back are out."""
    device = plan.own_lengths_B.device
    prefix_B = plan.prefix_lengths_G.repeat_interleave(members)
    now_B = prefix_B + plan.own_lengths_B
    position_own = prefix_B[:, None] + torch.arange(plan.length, device=device)
    position_prefix = torch.arange(prefix_length, device=device).expand(len(now_B), -1)
    position = torch.cat([position_own, position_prefix], dim=1)
    out = now_B[:, None] - position >= window
    return torch.zeros(out.shape, device=device).masked_fill_(out, float("-inf"))[:, None, None]
