"""The last touches to a paragraph of wikitext, made without losing track of where its links are."""

from __future__ import annotations

import re

from memtrain.corpus.pages import Link, Paragraph

_QUOTES = re.compile(r"'{2,}")
# What a template that went out leaves behind: "( ; born 1950)", "( , )", "()"; run until nothing changes.
_HOLES = (
    re.compile(r"\(\s*(?:[,;:/–—-]|\bor\b|\band\b)?[\s,;:/]*\)|\[\s*\]"),
    re.compile(r"(?<=\()\s*[,;:]+\s*"),
    re.compile(r"[\s,;:]+(?=\))"),
    re.compile(r"(?<=\()\s+"),
)
_BRACKET = re.compile(r"[()\[]")
_SPACE_BEFORE = re.compile(r" (?=[,.](?:\s|$))")
_SPACES = re.compile(r"[^\S ]\s*| \s+")  # runs of white space that are not one space

Edit = tuple[int, int, str]
"""Replace ``text[start:end]`` by a string."""


def tidy(text: str, links: list[Link]) -> Paragraph:
    """Quotes that mark bold and italics out, holes closed, white space collapsed; links follow."""
    if "''" in text:
        text, links = apply(text, links, _quote_edits(text))
    before = "" if _BRACKET.search(text) else text
    while before != text:  # a hole may lie in a hole
        before = text
        for pattern in _HOLES:
            text, links = apply(text, links, [(m.start(), m.end(), "") for m in pattern.finditer(text)])
    text, links = apply(text, links, [(m.start(), m.end(), " ") for m in _SPACES.finditer(text)])
    text, links = apply(text, links, [(m.start(), m.end(), "") for m in _SPACE_BEFORE.finditer(text)])
    lead, tail = len(text) - len(text.lstrip()), len(text.rstrip())
    kept = []
    for link in links:
        surface = text[link.start : link.end]
        start, end = link.start + len(surface) - len(surface.lstrip()), link.end - len(surface) + len(surface.rstrip())
        if start < end:
            kept.append(Link(start - lead, end - lead, link.target))
    return Paragraph(text[lead:tail], tuple(kept))


def _quote_edits(text: str) -> list[Edit]:
    """Which runs of apostrophes are markup: MediaWiki's doQuotes, line by line, in short.

    Two are italics, three bold, five both; four are an apostrophe and bold, more than five apostrophes and both. With
    odd bold and odd italics on a line one bold was an apostrophe and italics (``''Time'''s``).
    """
    edits: list[Edit] = []
    position = 0
    for line in text.splitlines(keepends=True):
        runs = list(_QUOTES.finditer(line))
        sizes = [5 if len(m[0]) > 5 else 3 if len(m[0]) == 4 else len(m[0]) for m in runs]
        bold, italics = sum(size in (3, 5) for size in sizes), sum(size in (2, 5) for size in sizes)
        if bold % 2 and italics % 2:
            candidates = [i for i, size in enumerate(sizes) if size == 3]
            candidates.sort(key=lambda i: runs[i].start() == 0 or line[runs[i].start() - 1].isspace())
            if candidates:
                sizes[candidates[0]] = 2
        for run, size in zip(runs, sizes, strict=True):
            edits.append((position + run.start(), position + run.end(), "'" * (len(run[0]) - size)))
        position += len(line)
    return edits


def apply(text: str, links: list[Link], edits: list[Edit]) -> tuple[str, list[Link]]:
    """Make edits (apart, ascending) and move the links along; an edge of a link inside an edit moves to its end."""
    if not edits:
        return text, links
    pieces: list[str] = []
    moved: dict[int, int] = {}
    marks = sorted({edge for link in links for edge in (link.start, link.end)})
    position = shift = index = 0
    for start, end, replacement in edits:
        pieces += (text[position:start], replacement)
        while index < len(marks) and marks[index] <= start:
            moved[marks[index]] = marks[index] + shift
            index += 1
        shift += len(replacement) - (end - start)
        while index < len(marks) and marks[index] < end:
            moved[marks[index]] = end + shift
            index += 1
        position = end
    for mark in marks[index:]:
        moved[mark] = mark + shift
    pieces.append(text[position:])
    return "".join(pieces), [Link(moved[link.start], moved[link.end], link.target) for link in links]


def close_holes(text: str) -> str:
    """Brackets that hold nothing, or begin or end with a mark, as texts have them where a template went out."""
    return tidy(text, []).text
