"""An engine that serves: who comes late joins at once, tokens are told as drawn, who hangs up frees the slot."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny

from memtrain.engines.base import StreamingEngine
from memtrain.engines.torch import sampling
from memtrain.engines.torch.engine import TorchEngine
from memtrain.types import SamplingParams


def served(family: str = "llama", **settings: Any) -> TorchEngine:
    return tiny.engine(family, overlap=ThreadPoolExecutor(1), **settings)


@pytest.mark.parametrize("family", ["llama", "qwen2-window", "gpt2"])
@pytest.mark.parametrize("most", [2, 64])
def test_who_comes_one_by_one_says_what_it_says_alone(family: str, most: int) -> None:
    """Longer prompts, shared prefixes and slots that were left arrive while others decode."""
    rng = random.Random(1)
    stem = tiny.ids(rng, 30)
    prompts = [(stem if n % 3 == 0 else ()) + tiny.ids(rng, 4 + 9 * (n % 4)) for n in range(10)]
    lengths = [4 + 5 * (n % 5) for n in range(10)]

    async def all_of_them(engine: TorchEngine) -> list[tuple[int, ...]]:
        async def one(number: int) -> tuple[int, ...]:
            await asyncio.sleep(0.004 * number)
            told: list[int] = []
            params = SamplingParams(lengths[number], temperature=0.0)
            completion = await engine.stream(prompts[number], params, told.append)
            assert tuple(told) == completion.token_ids
            return completion.token_ids

        return await asyncio.gather(*map(one, range(10)))

    async def alone(engine: TorchEngine) -> list[tuple[int, ...]]:
        return [
            (await engine.sample(prompt, SamplingParams(n, temperature=0.0)))[0].token_ids
            for prompt, n in zip(prompts, lengths, strict=True)
        ]

    assert tiny.run(all_of_them(served(family, max_sequences=most))) == tiny.run(alone(tiny.engine(family)))


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    engine = served()
    assert isinstance(engine, StreamingEngine)
    rng = random.Random(2)

    async def go() -> tuple[bool, int]:
        begun = asyncio.Event()
        params = SamplingParams(1500, ignore_eos=True)
        long = asyncio.ensure_future(engine.stream(tiny.ids(rng, 20), params, lambda token: begun.set()))
        await begun.wait()
        short = await engine.stream(tiny.ids(rng, 60), SamplingParams(3, ignore_eos=True), lambda token: None)
        waited = not long.done()
        long.cancel()
        return waited, len(short.token_ids)

    assert tiny.run(asyncio.wait_for(go(), 60)) == (True, 3)


def test_who_hangs_up_stops_the_work_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    step = sampling._Decoder.step

    def counted(self: sampling._Decoder) -> Any:
        sizes.append(sum(number is not None for number in self.running))
        return step(self)

    monkeypatch.setattr(sampling._Decoder, "step", counted)
    engine = served()
    rng = random.Random(3)

    async def go() -> int:
        begun = asyncio.Event()
        long = SamplingParams(3000, ignore_eos=True)
        tasks = [
            asyncio.ensure_future(engine.stream(tiny.ids(rng, 20), long, lambda token: begun.set())) for _ in range(3)
        ]
        stays = asyncio.ensure_future(engine.sample(tiny.ids(rng, 20), SamplingParams(400, ignore_eos=True)))
        await begun.wait()
        for task in tasks:
            task.cancel()
        [completion] = await stays
        return len(completion.token_ids)

    assert tiny.run(asyncio.wait_for(go(), 60)) == 400
    assert max(sizes) == 4
    assert sizes[-1] == 1
    assert len(sizes) < 1000  # nobody went on to 3,000 tokens


def test_everybody_hanging_up_leaves_an_engine_that_works() -> None:
    engine = served()
    rng = random.Random(4)

    async def go() -> int:
        for _ in range(5):
            begun = asyncio.Event()
            task = asyncio.ensure_future(
                engine.stream(tiny.ids(rng, 20), SamplingParams(3000, ignore_eos=True), lambda token, e=begun: e.set())
            )
            await begun.wait()
            task.cancel()
        return len((await engine.sample(tiny.ids(rng, 20), SamplingParams(7, ignore_eos=True)))[0].token_ids)

    assert tiny.run(asyncio.wait_for(go(), 60)) == 7
