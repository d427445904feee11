"""Pages to passages: ids, lengths, limits and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memtrain.corpus.pages import Page, Paragraph, ReadReport, cut
from memtrain.recipe import CorpusSettings
from memtrain.types import Entity, Passage


class PassageCounter:
    """Pages to passages, with ids, counts and limits."""

    def __init__(self, settings: CorpusSettings, report: ReadReport, limit: int | None = None) -> None:
        """``limit``: most passages, where it is not ``corpus.max_passages``."""
        self.settings, self.report = settings, report
        self.limit = settings.max_passages if limit is None else limit
        self.seen: dict[str, int] = {}  # page keys with passages: bounded by max_passages

    @property
    def full(self) -> bool:
        """Whether no more passages are wanted."""
        return self.report.passages >= self.limit

    def passages(self, pages: Iterator[Page]) -> Iterator[Passage]:
        """Passages of these pages, until there are enough."""
        for page in pages:
            if self.full:
                return
            yield from self._page(page)

    def _page(self, page: Page) -> Iterator[Passage]:
        key, number = "", 0
        for paragraph in page.paragraphs:
            pieces = list(cut(paragraph, self.settings.max_chars))
            if len(pieces) > 1:
                self.report.drop("cut at max_chars, the rest kept apart", len(pieces) - 1)
            for piece in pieces:
                if len(piece.text) < self.settings.min_chars:
                    self.report.drop("too short")
                    continue
                if self.full:
                    return
                if not key:
                    key = self.unique(page.key)
                    self.report.pages += 1
                self.report.passages += 1
                yield Passage(f"{key}#{number}", page.title, piece.text, _entities(piece))
                number += 1

    def unique(self, key: str) -> str:
        """The key of a page, told apart from the same keys before it."""
        return unique_key(key, self.times_seen)

    def times_seen(self, key: str) -> int:
        """How often this key has come up, this time included."""
        self.seen[key] = count = self.seen.get(key, 0) + 1
        return count


def unique_key(key: str, times_seen: Callable[[str], int]) -> str:
    """``key``, or ``key (2)``, ``key (3)``… where it was there before; ``times_seen`` counts the call itself."""
    while (count := times_seen(key)) > 1:
        key = f"{key} ({count})"
    return key


def _entities(paragraph: Paragraph) -> tuple[Entity, ...]:
    """Links with the same text are one entity; the page it leads to is an alias where it is written differently."""
    spans: dict[str, list[tuple[int, int]]] = {}
    targets: dict[str, list[str]] = {}
    for link in paragraph.links:
        text = paragraph.text[link.start : link.end]
        if not text.strip():
            continue
        spans.setdefault(text, []).append((link.start, link.end))
        known = targets.setdefault(text, [])
        # Titles begin with a capital whatever the text does: "parliament" is no other spelling of "Parliament".
        if link.target not in known and link.target != text[0].upper() + text[1:] and link.target != text:
            known.append(link.target)
    return tuple(Entity(text, tuple(places), "link", "links", tuple(targets[text])) for text, places in spans.items())
