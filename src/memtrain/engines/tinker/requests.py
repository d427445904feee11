"""What waits together: equal prompts become one request for several samples, scores become one forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from memtrain.errors import UserError
from memtrain.types import Completion, SamplingParams, StopReason

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Gatherer(Generic[Question, Answer]):
    """Collects what is asked until nobody has anything more to ask, then answers all of it."""

    def __init__(self, answer: Callable[[list[Question]], Awaitable[Sequence[Answer]]]):
        self._answer = answer
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question) -> Answer:
        """One answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, future))
        if len(self._waiting) == 1:
            task = loop.create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _run(self) -> None:
        seen = 0
        while len(self._waiting) != seen:  # episodes that go on at the same time ask in the same turn of the loop
            seen = len(self._waiting)
            await asyncio.sleep(0)
        batch, self._waiting = self._waiting, []
        try:
            answers = await self._answer([question for question, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)


class Turns:
    """Many may sample and score at once; who changes the weights is alone."""

    def __init__(self) -> None:
        self._condition = asyncio.Condition()
        self._inside = 0
        self._alone = False

    @asynccontextmanager
    async def together(self) -> Any:
        """With others."""
        async with self._condition:
            await self._condition.wait_for(lambda: not self._alone)
            self._inside += 1
        try:
            yield
        finally:
            async with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @asynccontextmanager
    async def alone(self) -> Any:
        """When all others are through."""
        async with self._condition:
            await self._condition.wait_for(lambda: not self._alone)
            self._alone = True
        try:
            async with self._condition:
                await self._condition.wait_for(lambda: self._inside == 0)
            yield
        finally:
            async with self._condition:
                self._alone = False
                self._condition.notify_all()


def completion_of(sequence: Any, params: SamplingParams, tokenizer: Any) -> Completion:
    """A sampled sequence in our words, cut after the token that completes a stop text.

    Stop texts are looked for here, since a request names stop tokens or stop texts but not both. Raises
    :class:`UserError` where log-probs are missing: nothing may stand for them in a ratio.
    """
    tokens, logprobs = list(sequence.tokens), list(sequence.logprobs or [])
    if len(logprobs) != len(tokens):
        raise UserError(f"the Tinker server gave {len(logprobs)} log-probs for {len(tokens)} tokens; update it")
    reason: StopReason = "stop" if str(sequence.stop_reason) == "stop" else "length"
    end = stop_position(tokens, params.stop, tokenizer)
    if end is not None:
        tokens, logprobs, reason = tokens[:end], logprobs[:end], "stop"
    return Completion(tuple(tokens), tuple(float(value) for value in logprobs), reason)


def stop_position(tokens: Sequence[int], stop: Sequence[str], tokenizer: Any) -> int | None:
    """How many tokens there are when the first stop text is complete; None without one."""

    def has(n: int) -> bool:
        text = tokenizer.decode(list(tokens[:n]))
        return any(one in text for one in stop)

    if not stop or not has(len(tokens)):
        return None
    low, high = 1, len(tokens)  # once complete, it stays in the text
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if has(middle) else (middle + 1, high)
    return low
