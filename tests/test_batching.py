"""Waiting requests run as one batch, in order; errors and cancellations reach exactly those they concern."""

from __future__ import annotations

import asyncio

import pytest

from memtrain.engines.torch.batching import Batcher


def test_what_waits_together_runs_together_and_in_order() -> None:
    batches: list[list[int]] = []

    def double(requests: list[int]) -> list[int]:
        batches.append(requests)
        return [2 * request for request in requests]

    async def episode(queue: Batcher[int, int], number: int) -> int:
        for _ in range(number % 3):  # some come a little later than others
            await asyncio.sleep(0)
        first = await queue.ask(number)
        return await queue.ask(first + 100)

    async def go() -> list[int]:
        queue = Batcher(double)
        return await asyncio.gather(*(episode(queue, number) for number in range(6)))

    assert asyncio.run(go()) == [2 * (2 * number + 100) for number in range(6)]
    assert [sorted(batch) for batch in batches] == [list(range(6)), [100 + 2 * number for number in range(6)]]


def test_an_error_wakes_everybody_and_the_next_batch_runs() -> None:
    def fussy(requests: list[int]) -> list[int]:
        if 3 in requests:
            raise ValueError("three")
        return requests

    async def go() -> None:
        queue = Batcher(fussy)
        found = await asyncio.gather(*(queue.ask(n) for n in (1, 2, 3)), return_exceptions=True)
        assert [str(error) for error in found] == ["three"] * 3
        assert await queue.ask(4) == 4

    asyncio.run(go())


def test_who_no_longer_waits_is_not_served() -> None:
    batches: list[list[int]] = []

    def note(requests: list[int]) -> list[int]:
        batches.append(requests)
        return requests

    async def go() -> None:
        queue = Batcher(note)
        gone, stays = (asyncio.ensure_future(queue.ask(n)) for n in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 2

    asyncio.run(go())
    assert batches == [[2]]


def test_ctrl_c_in_a_batch_reaches_the_caller() -> None:
    def interrupted(requests: list[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(Batcher(interrupted).ask(1))
