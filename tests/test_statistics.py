"""Means, bootstrap intervals and paired differences against hand calculations and simulated coverage."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.evaluation.statistics import (
    bootstrap_interval,
    by_document,
    clustered,
    estimate,
    paired_difference,
)

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def rows(metric: str, values: dict[str, list[float]]) -> list[dict[str, object]]:
    return [{"document": document, metric: value} for document, listed in values.items() for value in listed]


def test_interval_agrees_with_the_enumerated_bootstrap_distribution() -> None:
    """Three documents have 27 equally likely resamples: the quantiles of their means are known exactly."""
    values = [0.0, 1.0, 5.0]
    means = [float(np.mean(draw)) for draw in itertools.product(values, repeat=3)]
    low, high = bootstrap_interval(values, resamples=200_000, seed=1, level=0.8)
    exact = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
    assert [low, high] == pytest.approx(exact, abs=1e-12)


def test_two_documents_give_their_own_values_as_the_interval() -> None:
    assert bootstrap_interval([2.0, 6.0]) == (2.0, 6.0)  # each end has probability 1/4


def test_width_is_that_of_the_normal_approximation_in_a_large_sample() -> None:
    data = np.random.default_rng(0).normal(3.0, 2.0, size=2000)
    low, high = bootstrap_interval(data, resamples=4000, seed=3)
    arm = 1.959964 * data.std() / np.sqrt(data.size)
    assert low == pytest.approx(data.mean() - arm, abs=0.1 * arm)
    assert high == pytest.approx(data.mean() + arm, abs=0.1 * arm)


def test_coverage_of_clustered_rows() -> None:
    """Rows of a document share its difficulty. Resampling documents covers; resampling rows would not."""
    rng = np.random.default_rng(5)
    trials, documents, each = 300, 40, 6
    covered = covered_by_rows = 0
    for trial in range(trials):
        difficulty = rng.normal(0, 1, size=documents)
        values = difficulty[:, None] + rng.normal(0, 0.3, size=(documents, each))
        records = rows("x", {str(d): list(map(float, values[d])) for d in range(documents)})
        low, high = clustered(records, "x", 400, trial)["ci95"]
        covered += low <= 0 <= high
        low, high = bootstrap_interval(values.ravel(), 400, trial)
        covered_by_rows += low <= 0 <= high
    assert 0.90 <= covered / trials <= 0.98
    assert covered_by_rows / trials < 0.75


def test_documents_count_the_same_whatever_their_rows() -> None:
    records = rows("x", {"a": [1.0, 1.0, 1.0, 1.0], "b": [3.0]})
    assert by_document(records, "x") == {"a": 1.0, "b": 3.0}
    assert clustered(records, "x")["mean"] == 2.0
    assert clustered(records, "x")["n"] == 2


def test_missing_values_do_not_count() -> None:
    records = [{"document": "a", "x": None}, {"document": "b"}, {"document": "c", "x": 4.0}]
    assert clustered(records, "x") == {"mean": 4.0, "ci95": [None, None], "n": 1}
    assert clustered(records, "y") == {"mean": None, "ci95": [None, None], "n": 0}


def test_paired_difference_by_hand() -> None:
    before = rows("x", {"a": [0.0, 2.0], "b": [5.0], "only before": [100.0]})
    after = rows("x", {"b": [6.0], "a": [4.0], "only after": [-100.0]})
    result = paired_difference(before, after, "x")
    assert result == {"mean": 2.0, "ci95": [1.0, 3.0], "n": 2}  # a: 4 - 1 = 3, b: 6 - 5 = 1


def test_pairing_removes_what_documents_differ_in() -> None:
    level = random.Random(0)
    easy = {str(i): level.gauss(0, 10) for i in range(50)}
    before = rows("x", {name: [value] for name, value in easy.items()})
    after = rows("x", {name: [value + 0.5] for name, value in easy.items()})
    assert paired_difference(before, after, "x")["ci95"] == pytest.approx([0.5, 0.5])
    low, high = clustered(after, "x")["ci95"]
    assert high - low > 3


@settings(max_examples=50, deadline=None)
@given(st.lists(FINITE, min_size=2, max_size=30), st.integers(0, 2**31))
def test_interval_properties(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, 100, seed)
    tolerance = 1e-9 * max(1.0, max(map(abs, values)))
    assert min(values) - tolerance <= low <= high <= max(values) + tolerance
    assert bootstrap_interval(values, 100, seed) == (low, high)
    shifted = bootstrap_interval([value + 1 for value in values], 100, seed)
    assert shifted == pytest.approx((low + 1, high + 1), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.lists(FINITE, min_size=1, max_size=4), min_size=2, max_size=8))
def test_swapping_sides_turns_the_sign(values: dict[str, list[float]]) -> None:
    other = {name: [value / 2 + 1 for value in listed] for name, listed in values.items()}
    there = paired_difference(rows("x", values), rows("x", other), "x", 100)
    back = paired_difference(rows("x", other), rows("x", values), "x", 100)
    assert there["mean"] == pytest.approx(-back["mean"])
    assert there["ci95"] == pytest.approx([-back["ci95"][1], -back["ci95"][0]], abs=1e-6)


def test_resamples_in_blocks_are_all_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    data = list(np.random.default_rng(1).normal(size=50))
    whole = bootstrap_interval(data, 3000, 2)
    monkeypatch.setattr("memtrain.evaluation.statistics.BLOCK_CELLS", 777)
    assert bootstrap_interval(data, 3000, 2) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("bad", [[1.0], [], [1.0, float("nan")], [1.0, float("inf")]])
def test_refuses_what_has_no_interval(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="interval needs"):
        bootstrap_interval(bad)


def test_refuses_a_level_outside_0_1() -> None:
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0, 2.0], level=95)


def test_estimate_of_one_value_has_no_interval() -> None:
    assert estimate([7.0]) == {"mean": 7.0, "ci95": [None, None], "n": 1}
