"""Attention of one new token a slot: to the prefix its group shares, kept once, and to the slot's own keys.

The two parts are two products, merged by their log-sum-exp. Slots and prefixes are free of each other: any slot may
belong to any prefix row, so a finished sequence's slot goes to whichever sequence waits. Every shape is fixed while
the plan's layout stands, and nothing here waits for the device: a step can be captured in a CUDA graph.

Shapes: B slots, G prefix rows, M places a row, H query heads, K key-value heads, R = H / K, D head size, P room of the
prefixes, S own tokens looked at in this step. Keys are stored transposed, (.., D, tokens): the product of a few queries
with many keys runs 2.5 times faster so on a CPU, and as fast on a GPU. Where a CPU has a kernel of our own (``native``)
they lie row by row in memory, behind the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from memtrain.engines.torch.native.decode import DecodeKernel

NEVER = -1e30
"""Score of a key that may not be seen. Finite: where a row sees nothing, exp(NEVER - NEVER) must not be NaN."""


class LayerCache(NamedTuple):
    """Keys and values of one layer."""

    prefix_k: torch.Tensor
    """(G, K, D, P)."""
    prefix_v: torch.Tensor
    """(G, K, P, D)."""
    own_k: torch.Tensor
    """(B, K, D, room)."""
    own_v: torch.Tensor
    """(B, K, room, D)."""

    @classmethod
    def zeros(
        cls,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: int,
        own_room: int,
        rows: int,
        prefix_room: int,
        by_row: bool,
    ) -> LayerCache:
        """An empty one for keys and values like these, (1, K, 0, D); ``by_row`` says how keys lie in memory."""

        def empty(places: int, room: int) -> tuple[torch.Tensor, torch.Tensor]:
            heads, size = keys.shape[1], keys.shape[3]
            lie = (room, size) if by_row else (size, room)
            k = keys.new_zeros(places, heads, *lie)
            return k.transpose(2, 3) if by_row else k, values.new_zeros(places, heads, room, values.shape[3])

        return cls(*empty(rows, prefix_room), *empty(slots, own_room))

    def keep_slots(self, index: torch.Tensor) -> LayerCache:
        """These slots alone, keys lying in memory as before."""
        k = self.own_k.transpose(2, 3)[index].transpose(2, 3) if self.by_row else self.own_k[index]
        return self._replace(own_k=k, own_v=self.own_v[index])

    @property
    def by_row(self) -> bool:
        """Whether keys lie row by row in memory, as our own kernel wants them."""
        return self.own_k.shape[3] > 1 and self.own_k.stride(2) == 1


@dataclass
class DecodePlan:
    """Keys and values of the slots that decode together, and who belongs to which prefix."""

    layers: dict[int, LayerCache]
    """By layer number."""
    own_lengths_B: torch.Tensor
    """Own tokens of each slot whose keys are stored, before this step's token."""
    prefix_lengths_G: torch.Tensor
    """Tokens of each prefix row."""
    row_B: torch.Tensor
    """Prefix row of each slot, -1 for none."""
    slots_GM: torch.Tensor
    """Slots of each row, filled up with any slot."""
    place_B: torch.Tensor
    """Where a slot stands in the flattened ``slots_GM``; 0 for none."""
    ragged: bool = True
    """Whether some prefix is shorter than the room, and its row's end must be masked."""
    length: int = 0
    """S: how many own tokens a step looks at, this step's included; the host's upper bound."""
    biases: dict[tuple[str, int | None], torch.Tensor] = field(default_factory=dict)
    """Additive masks of this step by part and sliding window, float32."""
    every_B: torch.Tensor = field(init=False)
    """0..B-1."""
    bias_row: torch.Tensor = field(init=False)
    """(B, 1, 1, 1): out of sight for slots without a prefix."""
    kernel: DecodeKernel | None = field(init=False, default=None)
    """Our own kernel, where the caches were laid out for it."""

    def __post_init__(self) -> None:
        self.every_B = torch.arange(len(self.row_B), device=self.row_B.device)
        self.bias_row = _bias(self.row_B >= 0)[:, None, None, None]
        if next(iter(self.layers.values())).by_row:
            self.kernel = DecodeKernel(self.own_lengths_B, self.row_B, self.prefix_lengths_G)

    @property
    def prefix_length_B(self) -> torch.Tensor:
        """Tokens before each slot's own first."""
        if not len(self.prefix_lengths_G):
            return torch.zeros_like(self.own_lengths_B)
        return torch.where(self.row_B < 0, 0, self.prefix_lengths_G[self.row_B.clamp(min=0)])

    @property
    def positions_B(self) -> torch.Tensor:
        """Position of this step's token in its sequence."""
        return self.prefix_length_B + self.own_lengths_B

    def fill(self, other: DecodePlan) -> bool:
        """Take over another plan's state in this one's tensors; False where a shape differs, and nothing is taken."""
        mine, theirs = self._state(), other._state()
        if self.layers is not other.layers or any(a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
            return False
        for a, b in zip(mine, theirs, strict=True):
            a.copy_(b)
        return True

    def _state(self) -> tuple[torch.Tensor, ...]:
        return self.own_lengths_B, self.prefix_lengths_G, self.row_B, self.slots_GM, self.place_B, self.bias_row

    def begin_step(self, length: int) -> None:
        """Call before a forward pass in which no slot holds more than ``length`` own tokens, the new one included."""
        self.length = length
        self.biases.clear()

    def bias_own(self, window: int | None) -> torch.Tensor:
        """(B, 1, 1, S): own keys up to this step's token, within the window."""
        if ("own", window) not in self.biases:
            position = torch.arange(self.length, device=self.own_lengths_B.device)
            now = self.own_lengths_B[:, None]
            seen = position <= now
            if window is not None:
                seen &= now - position < window
            self.biases["own", window] = _bias(seen)[:, None, None]
        return self.biases["own", window]

    def bias_prefix(self, window: int | None) -> torch.Tensor:
        """(G, 1, 1 or M, 1, P): keys of the prefix that exist, within the window of each slot."""
        if ("prefix", window) not in self.biases:
            room = next(iter(self.layers.values())).prefix_v.shape[2]
            position = torch.arange(room, device=self.own_lengths_B.device)
            seen = (position < self.prefix_lengths_G[:, None])[:, None]
            if window is not None:
                now = self.positions_B[self.slots_GM]
                seen = seen & (now[:, :, None] - position < window)
            self.biases["prefix", window] = _bias(seen)[:, None, :, None]
        return self.biases["prefix", window]


def _bias(seen: torch.Tensor) -> torch.Tensor:
    return torch.where(seen, 0.0, NEVER)


def layout(
    rows: Sequence[int], n_rows: int, device: torch.device, width: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``row_B``, ``slots_GM`` and ``place_B`` of slots that belong to prefix ``rows`` (-1 for none).

    A row has at least ``width`` places.
    """
    members: list[list[int]] = [[] for _ in range(n_rows)]
    for slot, row in enumerate(rows):
        if row >= 0:
            members[row].append(slot)
    width = max(width, *(len(slots) for slots in members)) if members else 0
    place = [0] * len(rows)
    for row, slots in enumerate(members):
        for number, slot in enumerate(slots):
            place[slot] = row * width + number
    padded = [slots + [0] * (width - len(slots)) for slots in members]
    return (
        torch.tensor(rows, device=device, dtype=torch.long),
        torch.tensor(padded, device=device, dtype=torch.long).view(n_rows, width),
        torch.tensor(place, device=device, dtype=torch.long),
    )


def decode_attention(
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
    """Store this step's key and value, attend: q (B, H, 1, D), k and v (B, K, 1, D) -> (B, 1, H, D).

    Products are in the compute type, softmax and merge in float32, as in transformers' eager attention.
    """
    cache = plan.layers[layer]
    if plan.kernel is not None and window is None and softcap is None and sinks is None:
        return plan.kernel(layer, q, k, v, cache, scale)
    slots, heads, _, size = q.shape
    kv_heads, length = cache.own_k.shape[1], plan.length
    every = plan.every_B
    cache.own_k[every, :, :, plan.own_lengths_B] = k[:, :, 0]
    cache.own_v[every, :, plan.own_lengths_B] = v[:, :, 0]
    q_BKRD = q.reshape(slots, kv_heads, heads // kv_heads, size) * scale
    scores = _capped(q_BKRD @ cache.own_k[..., :length], softcap) + plan.bias_own(window)
    lse, out = _attend(scores, cache.own_v[:, :, :length])
    if plan.slots_GM.numel() and cache.prefix_v.shape[2]:
        lse_p, out_p = _prefix(plan, cache, q_BKRD, window, softcap)
        out = torch.lerp(out, out_p, torch.sigmoid(lse_p - lse))
        if sinks is not None:
            lse = torch.logaddexp(lse, lse_p)
    if sinks is not None:
        out = out * torch.sigmoid(lse - sinks.float().view(1, kv_heads, -1, 1))
    return out.to(q.dtype).reshape(slots, 1, heads, size)


def _prefix(
    plan: DecodePlan, cache: LayerCache, q_BKRD: torch.Tensor, window: int | None, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """All slots of a row are rows of one product with its prefix; results back in slot order."""
    _, kv_heads, repeats, size = q_BKRD.shape
    groups, places = plan.slots_GM.shape
    room = cache.prefix_v.shape[2]
    q_group = q_BKRD[plan.slots_GM.flatten()].view(groups, places, kv_heads, repeats, size).transpose(1, 2)
    scores = _capped(q_group.reshape(groups, kv_heads, -1, size) @ cache.prefix_k, softcap)
    if plan.ragged or window is not None:
        scores = scores.view(groups, kv_heads, places, repeats, room) + plan.bias_prefix(window)
        scores = scores.view(groups, kv_heads, -1, room)
    lse, out = _attend(scores, cache.prefix_v)

    def by_slot(x: torch.Tensor) -> torch.Tensor:
        x = x.view(groups, kv_heads, places, repeats, -1).transpose(1, 2)
        return x.reshape(groups * places, kv_heads, repeats, -1)[plan.place_B]

    return by_slot(lse) + plan.bias_row, by_slot(out)


def _attend(scores: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp of the scores (.., 1) and weighted values (.., D), both float32."""
    scores = scores.float()  # on a CPU all of this together is half as fast in bfloat16
    weights = scores.softmax(-1)
    # The largest weight is exp(0) / sum: it tells the sum without another pass of exponentials.
    lse = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    return lse, (weights.to(values.dtype) @ values).float()


def _capped(scores: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Soft cap of the attention scores (Gemma 2), in float32."""
    return scores if cap is None else torch.tanh(scores.float() / cap) * cap
