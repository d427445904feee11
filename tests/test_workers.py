"""What workers exchange, without processes: shares, means, mini-batches, draws that belong to a prompt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from memtrain.engines.workers import ALONE, combined, dealt_together, share, together
from memtrain.errors import UserError
from memtrain.rl.loss import Normalisers, RowCounts
from memtrain.rl.trainer import mini_batches
from memtrain.types import SamplingParams


class Seat:
    """One of several workers, of whom the test knows what all say."""

    def __init__(self, rank: int, size: int, said: Callable[[], list[Any]] = list) -> None:
        self.rank, self.size, self.said = rank, size, said

    def gather(self, value: Any) -> list[Any]:
        return self.said()

    def add_gradients(self, parameters: Any) -> None:
        raise AssertionError


@given(items=st.lists(st.integers()), size=st.integers(1, 7))
def test_shares_put_together_are_the_whole(items: list[int], size: int) -> None:
    shares = [share(Seat(rank, size), items) for rank in range(size)]
    assert dealt_together(shares) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(values=st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), min_size=2, max_size=5))
def test_combined_means_are_those_over_everything(values: list[list[float]]) -> None:
    parts = [
        (
            {"count": float(len(found))} | ({"mean": fmean(found)} if found else {}),
            {"mean": len(found)} if found else {},
        )
        for found in values
    ]
    whole = combined(Seat(0, len(parts), lambda: parts), *parts[0])
    flat = [value for found in values for value in found]
    assert whole["count"] == len(flat)
    assert ("mean" in whole) == bool(flat)
    if flat:
        assert whole["mean"] == pytest.approx(fmean(flat), rel=1e-9, abs=1e-9)


@given(documents=st.integers(0, 9), size=st.integers(1, 4), n=st.integers(1, 5), data=st.data())
def test_workers_make_the_mini_batches_of_one(documents: int, size: int, n: int, data: st.DataObject) -> None:
    names = [f"d{number}" for number in range(documents)]
    kept = [name for name in names if data.draw(st.booleans())]
    rows = {name: [tiny.row((1,), (2,), group_id=name), tiny.row((1,), (3,), group_id=f"{name}/0/1")] for name in kept}
    whole = mini_batches([row for name in kept for row in rows[name]], n)
    parts = [
        mini_batches([row for name in share(Seat(rank, size), names) for row in rows.get(name, [])], n, kept)
        for rank in range(size)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for number, batch in enumerate(whole):
        together_ = [row for part in parts for row in part[number]]
        assert sorted(map(repr, together_)) == sorted(map(repr, batch))


def test_counts_of_shares_give_the_normalisers_of_the_whole() -> None:
    from memtrain.engines.base import LossConfig

    rows = [row for seed in range(4) for row in tiny.joint_rows(seed)]
    added = sum((RowCounts.of(share(Seat(rank, 3), rows)) for rank in range(3)), RowCounts())
    for normaliser in ("conversations", "tokens"):
        config = LossConfig(normaliser=normaliser)  # type: ignore[arg-type]
        assert Normalisers.from_counts(added, config) == Normalisers.of(rows, config)


def test_a_mistake_elsewhere_is_a_mistake_here() -> None:
    async def work() -> int:
        return 1

    with pytest.raises(UserError, match="over there"):
        asyncio.run(together(Seat(0, 2, lambda: [None, "over there"]), work()))
    assert asyncio.run(together(ALONE, work())) == 1


def test_draws_by_prompt_do_not_depend_on_who_else_decodes() -> None:
    rng = random.Random(1)
    prompts = [tiny.ids(rng, 12 + number) for number in range(4)]
    params = SamplingParams(6)

    def drawn(engine: Any, chosen: list[tuple[int, ...]]) -> list[Any]:
        async def go() -> list[Any]:
            await engine.reseed("a step")
            return list(await asyncio.gather(*(engine.sample(prompt, params, n=2) for prompt in chosen)))

        return tiny.run(go())

    engine = tiny.engine(seed_by_prompt=True)
    whole = [[c.token_ids for c in found] for found in drawn(engine, prompts)]
    narrow = tiny.engine(seed_by_prompt=True, max_sequences=3)
    assert [[c.token_ids for c in found] for found in drawn(narrow, prompts[::-1])] == whole[::-1]
    for number, prompt in enumerate(prompts):
        [alone] = drawn(engine, [prompt])
        assert [c.token_ids for c in alone] == whole[number]
    assert len({tokens for found in whole for tokens in found}) > 4  # they are draws
    shared = tiny.engine()
    batched = [[c.token_ids for c in found] for found in drawn(shared, prompts)]
    assert [[c.token_ids for c in found] for found in drawn(shared, prompts[::-1])] != batched[::-1]
