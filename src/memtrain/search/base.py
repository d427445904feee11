"""The retriever protocol: what an agent that searches sees of a search engine.

A search that fails is an outcome, not an exception: an episode goes on without results, and whoever trains or measures
counts it. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Hit:
    """One passage that was found."""

    title: str
    """May be empty."""
    text: str
    score: float = 0.0
    """The retriever's own scale, larger is better; agents do not see it."""


@dataclass(frozen=True)
class Found:
    """What one query gave."""

    hits: tuple[Hit, ...] = ()
    """Best first; empty where nothing matched or the search failed."""
    failure: str = ""
    """Why the search failed, in a few words; empty where it did not."""

    @property
    def failed(self) -> bool:
        """Whether the query went unanswered, which is something else than no match."""
        return bool(self.failure)


class Retriever(Protocol):
    """Finds passages."""

    @property
    def name(self) -> str:
        """For messages: an address, or what is searched."""
        ...

    async def search(self, queries: Sequence[str], topk: int) -> list[Found]:
        """One outcome a query, in order, each with at most ``topk`` hits. Raises nothing that a server can cause."""
        ...

    async def check(self) -> None:
        """Raise :class:`memtrain.errors.UserError` where nothing can be found with it now."""
        ...

    def counts(self) -> dict[str, float]:
        """Since it was made: ``searches``, ``failed`` (of them), ``requests``, ``retried`` (of them), ``seconds``."""
        ...

    def close(self) -> None:
        """Let go of connections. A closed retriever may be used again."""
        ...
