"""Joint rewards against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtrain.rl.rewards import joint_reward, text_reward, trajectory_rewards

FINITE = st.floats(-100, 100)


def test_joint_reward_by_hand() -> None:
    # MemTrain: R_E + 0.5 * mean(R_I); 1 + 0.5 * 2/8 and 0 + 0.5 * 8/8
    assert joint_reward(1.0, [1, 1, 0, 0, 0, 0, 0, 0], 0.5) == pytest.approx(1.125)
    assert joint_reward(0.0, [1.0] * 8, 0.5) == pytest.approx(0.5)
    assert joint_reward(1.0, [], 0.5) == 1.0


def test_modes_by_hand() -> None:
    e2e, recall = [1.0, 0.0], [[0.25, 0.75], [1.0, 0.0]]
    assert trajectory_rewards(e2e, recall, "full", 0.5) == pytest.approx((1.25, 0.25))
    assert trajectory_rewards(e2e, recall, "decoupled", 0.5) == (1.0, 0.0)
    assert trajectory_rewards(e2e, [], "end-to-end", 0.5) == (1.0, 0.0)
    with pytest.raises(ValueError, match="2 trajectories"):
        trajectory_rewards(e2e, [[1.0]], "full", 0.5)


def test_text_reward() -> None:
    assert text_reward("exact", "\\boxed{Big Apple}", ["Big Apple Pie"]) == 0.0
    assert text_reward("f1", "\\boxed{Big Apple}", ["Big Apple Pie"]) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="likelihood"):
        text_reward("likelihood", "x", ["x"])


@given(e2e=FINITE, recall=st.lists(FINITE, max_size=8), weight=st.floats(0, 2), gain=st.floats(0.1, 10))
def test_more_recall_pays_in_proportion(e2e: float, recall: list[float], weight: float, gain: float) -> None:
    reward = joint_reward(e2e, recall, weight)
    assert joint_reward(e2e, recall, 0.0) == e2e
    if recall:
        assert joint_reward(e2e, [value + gain for value in recall], weight) == pytest.approx(reward + weight * gain)
