"""Documents from passages, wherever these lie: what the builds in memory and on the disk have in common."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from memtrain.corpus.compose import Composer
from memtrain.corpus.entities import EntityFinder
from memtrain.corpus.pages import ReadReport
from memtrain.corpus.statistics import SplitStatistics
from memtrain.corpus.store import DocumentWriter, Split
from memtrain.errors import UserError
from memtrain.recipe import Recipe

BLOCK = 32
"""Documents drawn between two reports of progress."""

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``; ``total`` is 0 where it is not known."""


@dataclass
class Source:
    """What the documents of a build are drawn from, and how."""

    read: ReadReport
    """What the reader, or all readers, counted."""
    finder: EntityFinder
    passages: int
    """Usable ones, of both sides."""
    unusable: int
    """Passages that spell a mask token."""
    write: Callable[[Split, DocumentWriter], SplitStatistics]
    """Draws the documents of one side."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of the reading."""


class NoNeighbours:
    """Stands in until the index is built."""

    def nearest(self, index: int, n: int) -> list[int]:
        """None."""
        return []

    def prefetch(self, indices: Sequence[int], n: int) -> None:
        """Nothing."""


def check_sides(recipe: Recipe, passages: Mapping[Split, int], pages: int) -> None:
    """Raise :class:`UserError` where one side has no passage; ``pages``: how many titles there are."""
    for split, count in passages.items():
        if not count:
            key = "raise" if split == "held_out" else "lower"
            raise UserError(
                f"corpus {recipe.corpus.source}: none of its {pages} pages falls on the {split} side (a page is never "
                f"on both): give a corpus with more pages, or {key} corpus.held_out, now {recipe.corpus.held_out}"
            )


def write_documents(
    composer: Composer, count: int, writer: DocumentWriter, tell: Progress, remembered: int | None = None
) -> SplitStatistics:
    """Draw ``count`` documents into ``writer``. ``remembered``: passages of which the composer keeps what it knows."""
    statistics = SplitStatistics(passages=len(composer.passages))
    what = f"documents, {composer.split}"
    started = time.monotonic()
    tell(what, 0, count)
    for start in range(0, count, BLOCK):
        for document in composer.draw_many(range(start, min(start + BLOCK, count))):
            writer.write(document)
            statistics.add(document)
        if remembered is not None:
            composer.forget(remembered)
        tell(what, min(start + BLOCK, count), count)
    writer.close()
    statistics.drops = dict(Counter(composer.drops).most_common())
    statistics.seconds = time.monotonic() - started
    return statistics
