"""Waiting requests run as one batch, in order; errors and cancellations reach exactly those they concern."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from memtrain.engines.torch.batching import Batch, Batcher, together


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
        queue = Batcher(together(double))
        return await asyncio.gather(*(episode(queue, number) for number in range(6)))

    assert asyncio.run(go()) == [2 * (2 * number + 100) for number in range(6)]
    assert [sorted(batch) for batch in batches] == [list(range(6)), [100 + 2 * number for number in range(6)]]


def test_an_error_wakes_everybody_and_the_next_batch_runs() -> None:
    def fussy(requests: list[int]) -> list[int]:
        if 3 in requests:
            raise ValueError("three")
        return requests

    async def go() -> None:
        queue = Batcher(together(fussy))
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
        queue = Batcher(together(note))
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
        asyncio.run(Batcher(together(interrupted)).ask(1))


# ---- with a worker thread -------------------------------------------------------------------------------------------


def test_with_a_worker_an_episode_goes_on_while_the_batch_runs_and_joins_it() -> None:
    """Request 0 takes long; episode 1 asks three times meanwhile, all in one batch."""
    batches, threads = [], set()
    third = threading.Event()

    def run(batch: Batch[int, int]) -> None:
        batches.append(batch)
        threads.add(threading.current_thread())
        batch.deliver(1, batch.requests[1])
        deadline = time.monotonic() + 10
        while not third.is_set() and time.monotonic() < deadline:
            for request in batch.arrivals():
                batch.deliver(batch.requests.index(request), request)
            time.sleep(0.001)
        batch.deliver(0, -1)

    async def busy(queue: Batcher[int, int]) -> list[int]:
        found = [await queue.ask(number) for number in (1, 2, 3)]
        third.set()
        return found

    async def go() -> tuple[int, list[int]]:
        with ThreadPoolExecutor(1) as worker:
            queue = Batcher(run, worker)
            return tuple(await asyncio.gather(queue.ask(0), busy(queue)))  # type: ignore[return-value]

    assert asyncio.run(go()) == (-1, [1, 2, 3])
    assert [batch.requests for batch in batches] == [[0, 1, 2, 3]]
    assert threading.main_thread() not in threads


def test_with_a_worker_who_comes_too_late_is_the_next_batch() -> None:
    batches = []

    def slow(requests: list[int]) -> list[int]:
        batches.append(requests)
        time.sleep(0.02)
        return requests

    async def go() -> None:
        with ThreadPoolExecutor(1) as worker:
            queue = Batcher(together(slow), worker)
            first = asyncio.ensure_future(queue.ask(1))
            await asyncio.sleep(0.01)
            assert [await queue.ask(2), await first] == [2, 1]

    asyncio.run(go())
    assert batches == [[1], [2]]


def test_with_a_worker_errors_and_interrupts_reach_who_waits() -> None:
    seen = threading.Event()

    def fails(requests: list[int]) -> list[int]:
        raise ValueError("three")

    def endless(batch: Batch[int, int]) -> None:
        deadline = time.monotonic() + 10
        while not batch.abandoned and time.monotonic() < deadline:
            time.sleep(0.001)
        if batch.abandoned:
            seen.set()

    async def go() -> None:
        with ThreadPoolExecutor(1) as worker:
            with pytest.raises(ValueError, match="three"):
                await Batcher(together(fails), worker).ask(3)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(Batcher(endless, worker).ask(1), 0.05)

    asyncio.run(go())
    assert seen.is_set()


def test_one_event_loop_after_the_other() -> None:
    """The worker may be at work when a loop ends: the next loop is served all the same."""

    def slow(requests: list[int]) -> list[int]:
        time.sleep(0.02)
        return requests

    with ThreadPoolExecutor(1) as worker:
        queue = Batcher(together(slow), worker)
        for number in range(5):
            assert asyncio.run(asyncio.wait_for(queue.ask(number), 5)) == number
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(queue.ask(6), 0.001))
        assert asyncio.run(asyncio.wait_for(queue.ask(7), 5)) == 7
