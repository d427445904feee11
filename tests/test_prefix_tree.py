"""Prefix trees: nothing lost, nothing twice, budgets kept. By example and by property."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memtrain.engines.prefix_tree import PrefixTree, build_prefix_tree, common_prefix, pack_by_budget

# Runs of one letter with a short end make long common prefixes, and stems inside stems, likely.
SEQUENCE = st.builds(lambda n, end: [0] * n + end, st.integers(0, 12), st.lists(st.integers(0, 1), max_size=4))
SEQUENCES = st.lists(SEQUENCE, max_size=10)
MIN_SHARED = st.integers(1, 6)


def rebuilt(tree: PrefixTree, number: int) -> list[int]:
    return [token for index in tree.paths[number] for token in tree.segments[index].tokens]


def packed(tree: PrefixTree) -> list[int]:
    return [token for segment in tree.segments for token in segment.tokens]


def test_the_shape_of_a_small_tree() -> None:
    tree = build_prefix_tree([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9], [7]], min_shared=1)
    assert [(s.tokens, s.parent, s.start, s.offset) for s in tree.segments] == [
        ((1, 2), -1, 0, 0),
        ((3,), 0, 2, 2),
        ((4,), 1, 3, 3),
        ((5,), 1, 3, 4),
        ((9,), 0, 2, 5),
        ((7,), -1, 0, 6),
    ]
    assert tree.paths == {0: (0, 1, 2), 1: (0, 1, 3), 2: (0, 4), 3: (5,)}
    assert tree.ancestors(3) == [0, 1]
    assert tree.n_tokens == 7
    assert tree.packed_indices(1, 1, 4) == [1, 2, 4]
    assert tree.packed_indices(1, 2, 2) == []
    with pytest.raises(IndexError, match="sequence 3"):
        tree.packed_indices(3, 0, 2)


def test_short_overlaps_are_not_worth_a_segment() -> None:
    rows = [[1, 2, 3, 4], [1, 2, 3, 5]]
    assert build_prefix_tree(rows, min_shared=4).n_tokens == 8
    assert build_prefix_tree(rows, min_shared=3).n_tokens == 5


def test_nothing_and_empty_sequences() -> None:
    assert build_prefix_tree([]).n_tokens == 0
    tree = build_prefix_tree([[], [1], []], min_shared=1)
    assert tree.paths == {0: (), 2: (), 1: (0,)}


@given(a=st.lists(st.integers(0, 1), max_size=20), b=st.lists(st.integers(0, 1), max_size=20))
def test_common_prefix_counts_what_agrees(a: list[int], b: list[int]) -> None:
    plain = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix(a, b) == common_prefix(tuple(b), tuple(a)) == plain


@given(rows=SEQUENCES, min_shared=MIN_SHARED)
def test_paths_rebuild_every_sequence(rows: list[list[int]], min_shared: int) -> None:
    tree = build_prefix_tree(rows, min_shared)
    assert sorted(tree.paths) == list(range(len(rows)))
    for number, row in enumerate(rows):
        assert rebuilt(tree, number) == row
        for first in range(len(row) + 1):
            for last in range(first, len(row) + 1):
                indices = tree.packed_indices(number, first, last)
                assert [packed(tree)[i] for i in indices] == row[first:last]


@given(rows=SEQUENCES, min_shared=MIN_SHARED)
def test_segments_lie_in_order_and_chains_follow_parents(rows: list[list[int]], min_shared: int) -> None:
    tree = build_prefix_tree(rows, min_shared)
    for index, segment in enumerate(tree.segments):
        assert segment.tokens
        assert -1 <= segment.parent < index
        chain = tree.ancestors(index)
        assert segment.start == sum(len(tree.segments[a].tokens) for a in chain)
        assert segment.offset == sum(len(s.tokens) for s in tree.segments[:index])
    for path in tree.paths.values():
        if path:
            assert list(path[:-1]) == tree.ancestors(path[-1])
    assert {index for path in tree.paths.values() for index in path} == set(range(len(tree.segments)))


@given(rows=SEQUENCES, min_shared=MIN_SHARED)
def test_what_stands_below_a_segment_follows_it_without_a_gap(rows: list[list[int]], min_shared: int) -> None:
    tree = build_prefix_tree(rows, min_shared)
    for index in range(len(tree.segments)):
        below = [other for other in range(len(tree.segments)) if index in tree.ancestors(other)]
        assert below == list(range(index + 1, index + 1 + len(below)))


@given(rows=SEQUENCES)
def test_each_distinct_prefix_stands_once(rows: list[list[int]]) -> None:
    tree = build_prefix_tree(rows, min_shared=1)
    distinct = {tuple(row[:length]) for row in rows for length in range(1, len(row) + 1)}
    assert tree.n_tokens == len(distinct)


@given(rows=SEQUENCES, min_shared=MIN_SHARED)
def test_what_is_lost_to_short_overlaps_is_bounded(rows: list[list[int]], min_shared: int) -> None:
    """A row gives away at most ``min_shared - 1`` tokens that it has in common with its neighbour."""
    best, tree = build_prefix_tree(rows, 1).n_tokens, build_prefix_tree(rows, min_shared)
    assert best <= tree.n_tokens <= best + max(0, len(rows) - 1) * (min_shared - 1)
    for index, segment in enumerate(tree.segments):
        shared_by = sum(index in path for path in tree.paths.values())
        assert shared_by == 1 or len(segment.tokens) >= min_shared


@settings(max_examples=500)
@example(rows=[[0] * 8, [0] * 7 + [1], [0] * 4 + [1]], budget=10, min_shared=4)
@given(rows=SEQUENCES, budget=st.integers(1, 40), min_shared=MIN_SHARED)
def test_batches_keep_the_budget_and_lose_no_row(rows: list[list[int]], budget: int, min_shared: int) -> None:
    batches = pack_by_budget(rows, budget, min_shared)
    assert sorted(number for batch in batches for number in batch) == list(range(len(rows)))
    for batch in batches:
        tree = build_prefix_tree([rows[number] for number in batch], min_shared)
        assert tree.n_tokens <= budget or len(batch) == 1


def test_rows_that_share_stay_together() -> None:
    stem, other = list(range(100, 200)), list(range(300, 400))
    rows = [part for i in range(4) for part in ([*stem, i], [*other, i])]
    batches = pack_by_budget(rows, 101 + 3 * 16, min_shared=16)
    assert sorted(sorted(batch) for batch in batches) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_group_is_not_cut_to_fill_a_batch() -> None:
    first, second = list(range(100, 200)), list(range(300, 400))
    rows = [[*stem, *range(1000 * i, 1000 * i + 20)] for stem in (first, second) for i in range(1, 5)]
    batches = pack_by_budget(rows, 360, min_shared=16)  # one group and a row of the other would fit
    assert sorted(sorted(batch) for batch in batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]
