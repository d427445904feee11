"""Attention over packed forests against plain softmax attention, row by row, in float64."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.engines.torch import packed_plan
from memtrain.engines.torch.head import row_max
from memtrain.engines.torch.packed_attention import packed_attention
from memtrain.engines.torch.packed_plan import PackedPlan

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
SCALE = 0.4
# (length, how many levels to climb from the segment before): depth-first order by construction.
FOREST = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=9)
HEADS = st.sampled_from([(2, 2), (3, 1), (6, 2), (4, 1)])
WINDOW = st.sampled_from([None, 1, 7, 30, 1000])
# Sizes of the tiles: as shipped, and so small that every forest falls into many.
SHIPPED = {name: getattr(packed_plan, name) for name in ("OWN_TOKENS", "SEGMENT_TOKENS", "TILE_SCORES")}
SIZES = st.sampled_from([SHIPPED, {"OWN_TOKENS": 8, "SEGMENT_TOKENS": 12, "TILE_SCORES": 64}])


def plan_of(shape: list[tuple[int, int]]) -> PackedPlan:
    lengths, parents, starts, path = list[int](), list[int](), list[int](), list[int]()
    for index, (length, climb) in enumerate(shape):
        path = path[: max(0, len(path) - climb)]
        parents.append(path[-1] if path else -1)
        starts.append(sum(lengths[i] for i in path))
        lengths.append(length)
        path.append(index)
    return PackedPlan(lengths, parents, starts)


def inputs(plan: PackedPlan, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64, size: int = 8) -> Tensors:
    draw = torch.Generator().manual_seed(sum(plan.lengths))
    n = sum(plan.lengths)
    shapes = ((heads, size), (kv_heads, size), (kv_heads, size + 4))
    q, k, v = (2 * torch.randn(1, n, h, d, dtype=torch.float64, generator=draw).transpose(1, 2) for h, d in shapes)
    return tuple(x.to(dtype).requires_grad_() for x in (q, k, v))  # type: ignore[return-value]


def row_by_row(plan: PackedPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """The chain of every segment as a sequence of its own; kept is what belongs to the segment itself."""
    pieces = [x.double().split(plan.lengths, dim=2) for x in (q, k, v)]
    repeats, out = q.shape[1] // k.shape[1], []
    for index, chain in enumerate(plan.ancestors()):
        query, key, value = (torch.cat([part[i] for i in (*chain, index)], dim=2) for part in pieces)
        position = torch.arange(query.shape[2])
        back = position[:, None] - position[None, :]
        seen = (back >= 0) & (back < (window or len(position)))
        scores = query @ key.repeat_interleave(repeats, 1).transpose(2, 3) * SCALE
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out.append((weights @ value.repeat_interleave(repeats, 1))[:, :, -plan.lengths[index] :])
    return torch.cat(out, dim=2).transpose(1, 2)


def both(plan: PackedPlan, tensors: Tensors, window: int | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Output and gradients of ours, and of the oracle in float64."""
    found = []
    for out in (packed_attention(plan, *tensors, SCALE, window), row_by_row(plan, *tensors, window)):
        slope = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        found.append([out.detach(), *torch.autograd.grad(out, tensors, slope)])
    return found[0], found[1]


@settings(max_examples=60, deadline=None)
@given(shape=FOREST, heads=HEADS, window=WINDOW, sizes=SIZES)
def test_output_and_gradient_are_those_of_separate_rows(
    shape: list[tuple[int, int]], heads: tuple[int, int], window: int | None, sizes: dict[str, int]
) -> None:
    plan = plan_of(shape)
    with mock.patch.multiple(packed_plan, **sizes):
        got, wanted = both(plan, inputs(plan, *heads), window)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("heads", [(3, 3), (9, 3), (4, 1)])
@pytest.mark.parametrize("window", [None, 50])
def test_bfloat16_keeps_the_direction(heads: tuple[int, int], window: int | None) -> None:
    plan = plan_of([(90, 0), (40, 0), (70, 1), (7, 1), (11, 1), (220, 9), (30, 9)])
    got, wanted = both(plan, inputs(plan, *heads, dtype=torch.bfloat16), window)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(mine.double().flatten(), theirs.double().flatten(), dim=0) > 0.999


@pytest.mark.parametrize("window", [None, 3])
def test_gradcheck(window: int | None) -> None:
    plan = plan_of([(3, 0), (2, 0), (2, 1), (1, 0), (2, 9)])
    with mock.patch.multiple(packed_plan, OWN_TOKENS=3, SEGMENT_TOKENS=2, TILE_SCORES=8):
        assert torch.autograd.gradcheck(
            lambda *tensors: packed_attention(plan, *tensors, SCALE, window), inputs(plan, 4, 2, size=3)
        )


def test_own_tiles_cover_every_row_once_and_nothing_twice() -> None:
    plan = plan_of([(40, 0), (9, 0), (3, 1), (30, 1), (5, 0), (21, 9)])
    with mock.patch.multiple(packed_plan, OWN_TOKENS=16, SEGMENT_TOKENS=24, TILE_SCORES=64):
        tiles = plan.tiles(None, 2, torch.float64)
    n = sum(plan.lengths)
    rows, pairs = torch.zeros(n), torch.zeros(n, n)
    for tile in tiles:
        rows[tile.row_from : tile.row_to] += tile.own
        seen = torch.ones(tile.row_to - tile.row_from, tile.key_to - tile.key_from)
        if tile.bias is not None:
            seen[:, -tile.bias.shape[1] :] = (tile.bias == 0).float()
        pairs[tile.row_from : tile.row_to, tile.key_from : tile.key_to] += seen
    assert rows.eq(1).all()
    assert [tile.own for tile in tiles] == sorted((tile.own for tile in tiles), reverse=True)
    assert pairs.max() == 1
    chains = [sum(plan.lengths[i] for i in chain) for chain in plan.ancestors()]
    wanted = [depth + place + 1 for depth, length in zip(chains, plan.lengths, strict=True) for place in range(length)]
    assert pairs.sum(1).tolist() == wanted


@given(st.lists(st.lists(st.floats(-50, 50) | st.just(float("-inf")), min_size=4, max_size=4), min_size=1, max_size=6))
def test_row_max_by_bits_is_the_maximum(rows: list[list[float]]) -> None:
    scores = torch.tensor(rows).bfloat16()
    assert row_max(scores).tolist() == scores.float().amax(-1).tolist()
