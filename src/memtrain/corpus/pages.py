"""What every reader hands on: pages of paragraphs, and a report of what did not become a passage."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

DAMAGED = (OSError, zlib.error, lzma.LZMAError)
"""What damaged compressed files raise; one that ends early raises EOFError."""
LISTED = 1000
"""So many skipped things are listed with their place; the rest are counted."""


@dataclass(frozen=True)
class Link:
    """A wiki link inside a paragraph."""

    start: int
    """First character of its visible text in the paragraph."""
    end: int
    """One past the last."""
    target: str
    """Title of the page it leads to, without section."""


@dataclass(frozen=True)
class Paragraph:
    """Plain text without line breaks, and the links in it, ascending and apart."""

    text: str
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Page:
    """One article, row or file."""

    key: str
    """Names the page where it has no title, such as ``rows.jsonl:12``."""
    title: str
    """Empty where the corpus has none."""
    paragraphs: Iterable[Paragraph]
    """In reading order; may be a generator."""


@dataclass(frozen=True)
class Skipped:
    """Something that could not be read."""

    where: str
    """File, with line, row or page where known."""
    reason: str
    """Why, in a few words: ``truncated``, ``not UTF-8``, ``bad JSON: …``."""


@dataclass
class ReadReport:
    """Filled while passages are read; whole when the last one has been."""

    pages: int = 0
    """Pages that gave at least one passage."""
    passages: int = 0
    """Passages given."""
    skipped: list[Skipped] = field(default_factory=list)
    """What could not be read: the first 1,000."""
    skipped_more: int = 0
    """How many more there were."""
    dropped: dict[str, int] = field(default_factory=dict)
    """What was read and left out on purpose, by reason (``too short``, ``redirect``, ``formula``…)."""
    aliases: dict[str, list[str]] = field(default_factory=dict)
    """Title -> titles that redirect to it. Grows with the redirects read, which ``corpus.max_passages`` bounds."""

    redirects: int = 0
    """How many redirects there are, where ``aliases`` lie on the disk."""

    def skip(self, where: str, reason: str) -> None:
        """Note something that could not be read."""
        if len(self.skipped) < LISTED:
            self.skipped.append(Skipped(where, reason))
        else:
            self.skipped_more += 1

    def drop(self, reason: str, n: int = 1) -> None:
        """Count something left out on purpose."""
        self.dropped[reason] = self.dropped.get(reason, 0) + n

    def add_alias(self, title: str, redirect: str) -> None:
        """Note a redirect page."""
        known = self.aliases.setdefault(title, [])
        if redirect not in known and redirect != title:
            known.append(redirect)

    def summary(self, listed: int = 5) -> str:
        """A few lines for a person: counts, reasons, the first skipped places."""
        lines = [f"{self.passages:,} passages from {self.pages:,} pages"]
        redirects = self.redirects or sum(len(names) for names in self.aliases.values())
        if redirects:
            lines[0] += f", {redirects:,} redirects kept as aliases"
        if self.dropped:
            reasons = sorted(self.dropped.items(), key=lambda item: -item[1])
            lines.append("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons))
        if self.skipped:
            lines.append(f"could not be read: {len(self.skipped) + self.skipped_more:,}")
            lines += [f"  {item.where}: {item.reason}" for item in self.skipped[:listed]]
            if len(self.skipped) + self.skipped_more > listed:
                lines.append("  …")
        return "\n".join(lines)


# A sentence ends at a mark, closing quotes or brackets, and white space; East Asian marks need no space.
_SENTENCE_END = re.compile(r"[.!?…‽؟۔।][\"'”’»)\]]*(?=\s)|[。！？．][」』”’）]*")
_INITIAL = re.compile(r"(?:^|[\s.(])[^\W\d_]$")


def cut(paragraph: Paragraph, max_chars: int) -> Iterator[Paragraph]:
    """Pieces of at most ``max_chars`` characters, cut at sentence ends; at a space where no sentence ends in reach.

    Links that a cut goes through are lost; all others keep their exact text.
    """
    text, start = paragraph.text, 0
    while len(text) - start > max_chars:
        end = start + _cut_point(text[start : start + max_chars + 1], max_chars)
        yield _slice(paragraph, start, end)
        start = end
    yield _slice(paragraph, start, len(text))


def _cut_point(window: str, max_chars: int) -> int:
    best = 0
    for match in _SENTENCE_END.finditer(window):
        # "J. Smith" and "U.S. Army": a single letter before the full stop is an initial, not an end.
        if match.end() <= max_chars and not (match[0] == "." and _INITIAL.search(window[: match.start()])):
            best = match.end()
    if best:
        return best
    space = window.rfind(" ", 1, max_chars + 1)
    return space if space > 0 else max_chars


def _slice(paragraph: Paragraph, start: int, end: int) -> Paragraph:
    piece = paragraph.text[start:end]
    lead = len(piece) - len(piece.lstrip())
    start += lead
    piece = piece.strip()
    end = start + len(piece)
    links = tuple(
        Link(link.start - start, link.end - start, link.target)
        for link in paragraph.links
        if start <= link.start and link.end <= end
    )
    return Paragraph(piece, links)


def plain_paragraphs(blocks: Sequence[str] | Iterable[str]) -> Iterator[Paragraph]:
    """Paragraphs without links, white space collapsed, empty ones gone."""
    for block in blocks:
        text = " ".join(block.split())
        if text:
            yield Paragraph(text)
