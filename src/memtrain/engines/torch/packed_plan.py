"""What a packed forward pass means to attention: the forest's segments, and the tiles they are computed in.

The tokens of a prefix tree lie in depth-first order, so everything below a segment follows it without a gap. Token i
may attend to token j exactly if ``j <= i < end_j``, where ``end_j`` is the end of the subtree below j's segment (and,
under a sliding window, if its position is near enough). That cuts the work into tiles that are plain slices:

* *own* tiles, a triangle each: a stretch of one segment against itself, or a run of short segments at once, masked;
* *shared* tiles, a full rectangle each: any number of descendants against a segment they have in common.

Shapes: N packed tokens, H query heads, K key-value heads, R = H / K, D head size, n rows (tokens) and m keys of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch

from memtrain.engines.prefix_tree import PrefixTree

OWN_TOKENS = 192
"""Own tiles hold about so many tokens: more waste products above the diagonal, fewer cost more calls."""
SEGMENT_TOKENS = 1024
"""Longer segments are cut into a chain, which bounds the keys of a tile."""
TILE_SCORES = 1 << 21
"""Scores of a tile over all heads: 4 MiB in bfloat16, so that the passes over them stay in the cache."""


@dataclass(frozen=True)
class Tile:
    """Scores of packed tokens ``row_from..row_to-1`` against packed tokens ``key_from..key_to-1``."""

    row_from: int
    row_to: int
    key_from: int
    key_to: int
    own: bool
    """One of the tiles that come first and cover every row once."""
    bias: torch.Tensor | None = None
    """(n, w) 0 or -inf for the last w keys; None where every row may attend to every key."""


@dataclass
class PackedPlan:
    """Attention structure of one packed forward pass, for all its layers and for the backward pass."""

    lengths: list[int]
    """Tokens of each segment; segments in depth-first order."""
    parents: list[int]
    """Index of the segment before each, -1 for a root."""
    starts: list[int]
    """Position of each segment's first token."""
    keep: bool = False
    """Keep keys and values (for decoding) in ``kept``."""
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Layer -> keys, values, each (1, K, N, D), after rotary embedding."""
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)
    _tiles: dict[tuple[int | None, int, torch.dtype], list[Tile]] = field(default_factory=dict)
    _buffers: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict)
    _segments: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, tree: PrefixTree, keep: bool = False) -> PackedPlan:
        """The plan of a prefix tree."""
        segments = tree.segments
        return cls([len(s.tokens) for s in segments], [s.parent for s in segments], [s.start for s in segments], keep)

    def ancestors(self) -> list[list[int]]:
        """For each segment the segments before it, root first."""
        chains: list[list[int]] = []
        for parent in self.parents:
            chains.append([*chains[parent], parent] if parent >= 0 else [])
        return chains

    def segments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each segment begins in the pack (S + 1) and its parent (S), int64 on the CPU."""
        if self._segments is None:
            self._segments = torch.tensor([0, *accumulate(self.lengths)]), torch.tensor(self.parents)
        return self._segments

    def sees_all(self, window: int | None) -> bool:
        """Whether no token is so far from its first key that a sliding window would hide it."""
        return window is None or all(s + n <= window for s, n in zip(self.starts, self.lengths, strict=True))

    def mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Boolean (queries, keys): the last ``queries`` keys are the queries' own; True may be attended to."""
        if (queries, keys, window) not in self._masks:
            position_q = torch.arange(keys - queries, keys, device=device)[:, None]
            position_k = torch.arange(keys, device=device)[None, :]
            mask = position_k <= position_q
            if window is not None:
                mask &= position_q - position_k < window
            self._masks[queries, keys, window] = mask
        return self._masks[queries, keys, window]

    def tiles(self, window: int | None, heads: int, dtype: torch.dtype) -> list[Tile]:
        """The tiles of a layer with so many query heads; own tiles first."""
        key = (None if self.sees_all(window) else window, heads, dtype)
        if key not in self._tiles:
            self._tiles[key] = _Layout(self, *key).tiles()
        return self._tiles[key]

    def buffer(self, number: int, shape: tuple[int, int, int], like: torch.Tensor) -> torch.Tensor:
        """Scratch for a tile's scores: the same memory for every tile and layer, so that it stays in the cache."""
        size = shape[0] * shape[1] * shape[2]
        found = self._buffers.get((number, like.dtype))
        if found is None or len(found) < size:
            found = self._buffers[number, like.dtype] = like.new_empty(size)
        return found[:size].view(shape)


class _Layout:
    """Cuts a forest into tiles."""

    def __init__(self, plan: PackedPlan, window: int | None, heads: int, dtype: torch.dtype):
        self.window, self.heads, self.dtype = window, heads, dtype
        lengths: list[int] = []
        parents: list[int] = []
        last: list[int] = []  # of the pieces of each segment
        for length, parent in zip(plan.lengths, plan.parents, strict=True):
            before = last[parent] if parent >= 0 else -1
            for a, b in _cut(0, length, -(-length // SEGMENT_TOKENS)):
                lengths.append(b - a)
                parents.append(before)
                before = len(lengths) - 1
            last.append(before)
        self.offsets = [0, *accumulate(lengths)]
        self.ends = self.offsets[1:]
        for index in reversed(range(len(parents))):
            if parents[index] >= 0:
                self.ends[parents[index]] = max(self.ends[parents[index]], self.ends[index])
        self.end_N = torch.tensor(self.ends).repeat_interleave(torch.tensor(lengths))
        counts = torch.tensor(plan.lengths)
        shift = torch.tensor(plan.starts) - (counts.cumsum(0) - counts)
        self.position_N = torch.arange(self.offsets[-1]) + shift.repeat_interleave(counts)

    def tiles(self) -> list[Tile]:
        own: list[Tile] = []
        shared: list[Tile] = []
        for first, last in self._runs():
            low, high = self.offsets[first], self.offsets[last]
            pieces = max(1, round((high - low) / OWN_TOKENS)) if last == first + 1 else 1
            for a, b in _cut(low, high, pieces):
                if self.window is None:  # before its own triangle a stretch of a segment sees all of the segment
                    own.append(self._masked(a, b, low, a, b, own=True))
                else:
                    seen = low if pieces == 1 else max(low, a - self.window + 1)
                    own.append(self._masked(a, b, seen, seen, b, own=True))
            for index in range(first, last):
                if self.ends[index] > high:
                    shared += self._rectangle(high, self.ends[index], *self.offsets[index : index + 2])
        return own + shared

    def _runs(self) -> list[tuple[int, int]]:
        """Segments ``first..last-1`` that form one triangle: neighbours as long as they fit in a tile."""
        runs: list[tuple[int, int]] = []
        for index in range(len(self.ends)):
            if runs and self.offsets[index + 1] - self.offsets[runs[-1][0]] <= OWN_TOKENS:
                runs[-1] = (runs[-1][0], index + 1)
            else:
                runs.append((index, index + 1))
        return runs

    def _rectangle(self, row_from: int, row_to: int, key_from: int, key_to: int) -> list[Tile]:
        found = []
        rows_at_once = max(32, TILE_SCORES // (self.heads * (key_to - key_from)))
        for a, b in _cut(row_from, row_to, -(-(row_to - row_from) // rows_at_once)):
            if self.window is None:
                found.append(Tile(a, b, key_from, key_to, own=False))
                continue
            # Keys that no row of the tile can see any more are left out.
            first_seen = int(self.position_N[a:b].min()) - self.window + 1
            low = max(key_from, key_from + first_seen - int(self.position_N[key_from]))
            if low < key_to:
                found.append(self._masked(a, b, low, low, key_to, own=False))
        return found

    def _masked(self, row_from: int, row_to: int, key_from: int, mask_from: int, key_to: int, own: bool) -> Tile:
        """A tile with a mask on the keys from ``mask_from``."""
        i = torch.arange(row_from, row_to)[:, None]
        j = torch.arange(mask_from, key_to)[None, :]
        seen = (j <= i) & (i < self.end_N[j])
        if self.window is not None:
            seen &= self.position_N[i] - self.position_N[j] < self.window
        if bool(seen.all()):
            return Tile(row_from, row_to, key_from, key_to, own)
        bias = torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, float("-inf"))
        return Tile(row_from, row_to, key_from, key_to, own, bias)


def _cut(low: int, high: int, pieces: int) -> list[tuple[int, int]]:
    """``low..high`` in pieces of nearly one length."""
    marks = [low + (high - low) * piece // pieces for piece in range(pieces + 1)]
    return list(pairwise(marks))
