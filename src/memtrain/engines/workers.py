"""Who else computes the same update: data-parallel workers as the trainer and an engine see them.

Every worker runs the same program on its share of a step's documents. What is not a share (counts, gradients, errors)
is exchanged here. Nothing here imports torch; ``engines/torch/process_group.py`` is the real thing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from memtrain.errors import UserError

BUCKET_BYTES = 64 * 2**20
"""Gradients travel in pieces of about this size: large enough for full bandwidth, small beside the model."""

Item = TypeVar("Item")


class Agreed(UserError):
    """A mistake that all workers know of, so that none waits for another."""


class Workers(Protocol):
    """The workers of a run, one of which this process is."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0. Rank 0 writes what a run leaves behind."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank. All workers must call it, in the same order; it waits for the slowest."""
        ...

    def add_gradients(self, parameters: Iterable[Any]) -> None:
        """Replace every gradient (float32; a missing one counts as zeros) by its sum over the workers."""
        ...


class Alone:
    """One worker: nothing to exchange."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """The value."""
        return [value]

    def add_gradients(self, parameters: Iterable[Any]) -> None:
        """Nothing to add."""


ALONE: Workers = Alone()


def share(workers: Workers, items: Sequence[Item]) -> list[Item]:
    """This worker's part: every ``size``-th item from ``rank`` on, so parts differ by one item at most."""
    return list(items[workers.rank :: workers.size])


def dealt_together(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """The inverse of :func:`share`: the parts of all workers, by rank, in the order of the whole."""
    longest = max(map(len, parts), default=0)
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


async def together(workers: Workers, work: Awaitable[Item]) -> Item:
    """Await this worker's part of something; where it ended in a :class:`UserError` on one, all raise :class:`Agreed`.

    Without it the others would wait for a worker that has given up.
    """
    if workers.size == 1:
        return await work
    with _told(workers):
        result = await work
    return result


def done_together(workers: Workers, work: Callable[[], Item]) -> Item:
    """:func:`together` for a plain function, outside of an event loop."""
    if workers.size == 1:
        return work()
    with _told(workers):
        result = work()
    return result


@contextmanager
def _told(workers: Workers) -> Iterator[None]:
    sentence = None
    try:
        yield
    except UserError as error:
        sentence = str(error)
    agree(workers, sentence)


def agree(workers: Workers, sentence: str | None) -> None:
    """Exchange what went wrong; raises the first sentence as :class:`Agreed` everywhere."""
    for found in workers.gather(sentence):
        if found is not None:
            raise Agreed(found)


def combined(workers: Workers, metrics: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Metrics over all workers: weighted means where ``weights`` says of how many things a number is the mean, sums
    of all others. A worker without documents has none."""
    if workers.size == 1:
        return dict(metrics)
    found: list[tuple[Mapping[str, float], Mapping[str, float]]] = workers.gather((metrics, weights))
    names = list(dict.fromkeys(name for part, _ in found for name in part))
    whole = {}
    for name in names:
        having = [(part[name], weight.get(name)) for part, weight in found if name in part]
        if all(weight is None for _, weight in having):
            whole[name] = sum(value for value, _ in having)
        else:
            total = sum(weight or 0.0 for _, weight in having)
            whole[name] = sum(value * (weight or 0.0) for value, weight in having) / total if total else 0.0
    return whole
