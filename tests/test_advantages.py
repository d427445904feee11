"""Group advantages, drops and rows against worked examples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtrain.rl.advantages import STD_EPS, cross_entropy_rows, group_advantages, rows_of
from memtrain.types import Group, Turn


def turn(kind: str = "write", step: int = 1, n: int = 3) -> Turn:
    return Turn(
        kind=kind,  # type: ignore[arg-type]
        step=step,
        prompt_ids=(1, 2, step),
        completion_ids=tuple(range(n)),
        logprobs=(-0.5,) * n,
        text="t",
    )


def test_mean_subtracted() -> None:
    assert group_advantages([1, 0, 0, 1]) == pytest.approx((0.5, -0.5, -0.5, 0.5))
    assert group_advantages([1.125, 0.5, 0.5, 0.125]) == pytest.approx((0.5625, -0.0625, -0.0625, -0.4375))


def test_divided_by_the_sample_std() -> None:
    # rewards 1, 2, 3: mean 2, sample std 1 (population std would be 0.816)
    assert group_advantages([1, 2, 3], True) == pytest.approx((-1 / (1 + STD_EPS), 0, 1 / (1 + STD_EPS)))
    # rewards 1, 0: sample std sqrt(0.5)
    assert group_advantages([1, 0], True, eps=0.0) == pytest.approx((0.5 / math.sqrt(0.5), -0.5 / math.sqrt(0.5)))


@pytest.mark.parametrize("rewards", [[], [1.0], [0.0, 0.0, 0.0], [0.3, 0.3], [-7.25] * 8])
def test_no_variance_no_advantage(rewards: list[float]) -> None:
    assert group_advantages(rewards) is None
    assert group_advantages(rewards, True) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages([0.0, bad])


REWARDS = st.lists(st.floats(-50, 50), min_size=2, max_size=16)


@given(rewards=REWARDS, std=st.booleans(), shift=st.floats(-50, 50))
def test_advantages_sum_to_zero_and_ignore_a_common_offset(rewards: list[float], std: bool, shift: float) -> None:
    advantages = group_advantages(rewards, std)
    if advantages is None:
        assert max(rewards) - min(rewards) <= 1e-8
        return
    assert sum(advantages) == pytest.approx(0.0, abs=1e-6)
    assert sorted(range(len(rewards)), key=lambda i: rewards[i]) == sorted(
        range(len(rewards)), key=lambda i: (advantages[i], rewards[i], i)
    ) or len(set(rewards)) < len(rewards)
    shifted = group_advantages([reward + shift for reward in rewards], std)
    if shifted is not None and max(rewards) - min(rewards) > 1e-3:
        assert shifted == pytest.approx(advantages, rel=1e-4, abs=1e-6)


def test_rows_broadcast_the_advantage_and_count_the_drops() -> None:
    groups = [
        Group(
            id="d1",
            kind="e2e",
            rewards=(1.0, 0.0),
            members=(
                (turn(step=1), turn(step=2), turn("answer", 3)),
                (turn(step=1), turn(step=2), turn("answer", 3, n=0)),
            ),
            member_ids=("d1/0", "d1/1"),
        ),
        Group(id="d2", kind="e2e", rewards=(0.5, 0.5), members=((turn(),), (turn(),))),
        Group(id="d2/0/0", kind="recall", rewards=(1.0, 0.0, 0.0), members=tuple((turn("recall"),) for _ in range(3))),
        Group(id="d1/0/0", kind="recall", rewards=(0.0, 0.0), members=((turn("recall"),), (turn("recall"),))),
    ]
    batch = rows_of(groups)
    assert batch.kept == {"e2e": 1, "recall": 1}
    assert batch.dropped == {"e2e": 1, "recall": 1}
    assert batch.metrics == {
        "groups/e2e/kept": 1.0,
        "groups/recall/kept": 1.0,
        "groups/e2e/dropped": 1.0,
        "groups/recall/dropped": 1.0,
    }
    assert [(row.trajectory_id, row.step, row.kind) for row in batch.rows[:6]] == [
        ("d1/0", 1, "write"),
        ("d1/0", 2, "write"),
        ("d1/0", 3, "answer"),
        ("d1/1", 1, "write"),
        ("d1/1", 2, "write"),
        ("d1/1", 3, "answer"),
    ]
    assert [row.advantage for row in batch.rows] == pytest.approx([0.5] * 3 + [-0.5] * 3 + [2 / 3, -1 / 3, -1 / 3])
    assert {row.group_id for row in batch.rows} == {"d1", "d2/0/0"}
    assert all(row.loss == "policy" and len(row.logprobs) == len(row.completion_ids) for row in batch.rows)
    normalised = rows_of(groups, std_normalise=True)
    assert normalised.rows[0].advantage == pytest.approx(0.5 / (math.sqrt(0.5) + STD_EPS))


def test_nothing_to_train() -> None:
    batch = rows_of([])
    assert batch.rows == ()
    assert batch.kept == batch.dropped == {"e2e": 0, "recall": 0}


def test_cross_entropy_rows_carry_the_target() -> None:
    [row] = cross_entropy_rows([turn("recall", 2)], weight=0.25, group_id="d", trajectory_id="d/3")
    assert (row.loss, row.kind, row.step, row.weight, row.logprobs) == ("cross_entropy", "recall", 2, 0.25, ())
    assert (row.completion_ids, row.group_id, row.trajectory_id) == ((0, 1, 2), "d", "d/3")
