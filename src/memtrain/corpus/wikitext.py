"""Wikitext to plain paragraphs with their links.

Parsing is mwparserfromhell's; what is kept of its tree is decided here. Tables, references, templates that carry no
running text, files, categories, headings, lists and formulas go out; link texts stay, with the page they lead to.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import mwparserfromhell
from mwparserfromhell import nodes

from memtrain.corpus.pages import Link, Paragraph
from memtrain.corpus.templates import render

FORMULA = "\ufffc"
"""Stands in a paragraph where a formula was, so that the paragraph can be told from one that is whole."""
_BREAK = "\n\n"

_COMMENT_LINE = re.compile(r"(?<=\n)[ \t]*<!--(?:(?!-->).)*-->[ \t]*\n|<!--.*?-->", re.S)
_REFERENCE = re.compile(r"<ref\b[^<>]*?/\s*>|<ref\b[^<>]*>.*?</ref\s*>", re.S | re.I)
_MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
_DROPPED_TAGS = frozenset(
    {
        *("ref", "references", "table", "gallery", "timeline", "source", "syntaxhighlight", "code", "pre", "score"),
        *("hiero", "imagemap", "graph", "mapframe", "maplink", "templatedata", "inputbox", "poem", "section"),
        *("indicator", "includeonly"),
    }
)
_FORMULA_TAGS = frozenset({"math", "chem", "ce"})
_BLOCK_TAGS = frozenset(
    {"p", "div", "blockquote", "center", "ol", "ul", "dl", "h1", "h2", "h3", "h4", "h5", "h6", "hr"}
)
_LIST_TAGS = frozenset({"li", "dd", "dt"})
DROPPED_NAMESPACES = frozenset({"file", "image", "category", "media"})
"""Links to these leave no text behind (English names; a dump's own names are added)."""
_OTHER_NAMESPACES = frozenset(
    {
        *(
            "wikipedia",
            "wp",
            "project",
            "user",
            "talk",
            "help",
            "template",
            "portal",
            "special",
            "module",
            "draft",
            "book",
        ),
        *(
            "mediawiki",
            "wikt",
            "wiktionary",
            "wikisource",
            "s",
            "commons",
            "c",
            "wikiquote",
            "q",
            "wikibooks",
            "b",
            "n",
        ),
        *(
            "wikinews",
            "wikispecies",
            "species",
            "wikiversity",
            "v",
            "wikivoyage",
            "voy",
            "meta",
            "m",
            "mw",
            "wikidata",
            "d",
        ),
    }
)
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?|simple")
_QUOTES = re.compile(r"'{2,}")
_LEFTOVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?[a-zA-Z][^<>]*>|<!--|-->|&[a-zA-Z]+;|__[A-Z]{3,}__|\|\|")
# What a template that went out leaves behind: "( ; born 1950)", "( , )", "()"; run until nothing changes.
_HOLES = (
    re.compile(r"\(\s*(?:[,;:/–—-]|\bor\b|\band\b)?[\s,;:/]*\)|\[\s*\]"),
    re.compile(r"(?<=\()\s*[,;:]+\s*"),
    re.compile(r"[\s,;:]+(?=\))"),
    re.compile(r"(?<=\()\s+"),
)
_SPACE_BEFORE = re.compile(r"\s+(?=[,.](?:\s|$))")
_SPACES = re.compile(r"\s+")

Edit = tuple[int, int, str]


def paragraphs_of(
    wikitext: str, file_namespaces: Collection[str] = (), namespaces: Collection[str] = ()
) -> Iterator[Paragraph]:
    """Paragraphs of one page in order, with links; formulas are marked by :data:`FORMULA`.

    ``file_namespaces`` are the lower-case names of the wiki's file and category namespaces, ``namespaces`` of all
    others, as its dump gives them. Raises whatever mwparserfromhell raises on text it cannot parse.
    """
    text = _REFERENCE.sub("", _COMMENT_LINE.sub("", wikitext))
    code = mwparserfromhell.parse(_MAGIC_WORD.sub("", text), skip_style_tags=True)
    flow = _Flow(DROPPED_NAMESPACES | set(file_namespaces), _OTHER_NAMESPACES | set(namespaces))
    flow.walk(code.nodes)
    yield from flow.paragraphs()


def close_holes(text: str) -> str:
    """Brackets that hold nothing, or begin or end with a mark, as texts have them where a template went out."""
    return _tidy(text, []).text


def has_leftover_markup(text: str) -> bool:
    """Whether a finished paragraph still shows wiki or HTML markup (an article's own mistake, as a rule)."""
    return _LEFTOVER.search(text) is not None


class _Flow:
    """The running text of a page, with the places of its links."""

    def __init__(self, dropped: Collection[str], other: Collection[str]) -> None:
        self.dropped, self.other = dropped, other
        self.pieces: list[str] = []
        self.length = 0
        self.links: list[Link] = []
        self.trail: str | None = None  # target of a link that ended just now: "[[bus]]es" shows "buses"

    def add(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            self.length += len(text)

    def walk(self, nodes_: Iterable[Any]) -> None:
        for node in nodes_:
            open_link, self.trail = self.trail, None
            if isinstance(node, nodes.Text):
                self.add(self._take_trail(open_link, str(node)))
            elif isinstance(node, nodes.Wikilink):
                self.wikilink(node)
            elif isinstance(node, nodes.Tag):
                self.tag(node)
            elif isinstance(node, nodes.Template):
                self.template(node)
            elif isinstance(node, nodes.HTMLEntity):
                self.add(html.unescape(str(node)))
            elif isinstance(node, nodes.Heading):
                self.add(_BREAK)
            elif isinstance(node, nodes.ExternalLink) and node.brackets and node.title is not None:
                self.walk(node.title.nodes)

    def _take_trail(self, target: str | None, text: str) -> str:
        if target is None:
            return text
        end = 0
        while end < len(text) and text[end].islower():  # scripts without case have no link trail
            end += 1
        if end:
            self.add(text[:end])
            last = self.links.pop()
            self.links.append(Link(last.start, self.length, last.target))
        return text[end:]

    def wikilink(self, node: Any) -> None:
        title = html.unescape(str(node.title)).strip().replace("_", " ")
        forced = title.startswith(":")
        title = title.lstrip(": ")
        prefix, colon, rest = title.partition(":")
        prefix = prefix.strip().lower()
        if colon and prefix in self.dropped and not forced:
            return
        inner = node.text.nodes if node.text is not None else None
        elsewhere = bool(colon) and (prefix in self.other or prefix in self.dropped)
        if colon and not elsewhere and not rest.startswith(" ") and _LANGUAGE_CODE.fullmatch(prefix):
            if inner is None and not forced:
                return  # interlanguage link of the side bar
            elsewhere = True
        start = self.length
        if inner is None:
            self.add(title)
        elif str(node.text).strip():
            self.walk(inner)
        else:
            self.add(_pipe_trick(title))
        target = " ".join(title.partition("#")[0].split())
        if not elsewhere and target and self.length > start:
            self.links.append(Link(start, self.length, target[0].upper() + target[1:]))
            self.trail = target

    def tag(self, node: Any) -> None:
        name = str(node.tag).strip().lower()
        if node.wiki_markup and name in _LIST_TAGS:
            self.add(str(node.wiki_markup))  # the line is dropped by its first character
        elif name in _FORMULA_TAGS:
            self.add(FORMULA)
        elif name == "br":
            self.add(" ")
        elif name == "nowiki":
            self.add(html.unescape(str(node.contents or "")))
        elif name == "li":
            self.add("\n*")
        elif name in _DROPPED_TAGS:
            if name == "table":
                self.add(_BREAK)
        else:
            block = name in _BLOCK_TAGS
            self.add(_BREAK if block else "")
            if node.contents is not None:
                self.walk(node.contents.nodes)
            self.add(_BREAK if block else "")

    def template(self, node: Any) -> None:
        shown = render(node)
        if shown is None:
            return
        if isinstance(shown, str):
            self.add(FORMULA if shown == "formula" else shown)
            return
        before, value, after = shown
        self.add(before)
        self.walk(value.nodes)
        self.add(after)

    def paragraphs(self) -> Iterator[Paragraph]:
        text = "".join(self.pieces)
        links = iter(sorted(self.links, key=lambda link: (link.start, -link.end)))
        pending = next(links, None)
        for block in _blocks(text):
            start, end = block
            inside: list[Link] = []
            while pending is not None and pending.start < end:
                if pending.start >= start and pending.end <= end and (not inside or pending.start >= inside[-1].end):
                    inside.append(Link(pending.start - start, pending.end - start, pending.target))
                pending = next(links, None)
            paragraph = _tidy(text[start:end], inside)
            if paragraph.text:
                yield paragraph


def _pipe_trick(title: str) -> str:
    """``[[Mercury (planet)|]]`` shows ``Mercury``."""
    return re.sub(r"\s*\([^()]*\)$", "", title.partition(":")[2] or title)


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Spans of paragraphs: lines up to a blank line or a line that is a list item, which itself is left out."""
    start: int | None = None
    position = 0
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        if not stripped or stripped[0] in "*#:;" or stripped.startswith(("{|", "|", "!")):
            if start is not None:
                yield start, position
            start = None
        elif start is None:
            start = position
        position += len(line)
    if start is not None:
        yield start, position


def _tidy(text: str, links: list[Link]) -> Paragraph:
    """Quotes that mark bold and italics out, holes closed, white space collapsed; links follow."""
    text, links = _apply(text, links, _quote_edits(text))
    before = ""
    while before != text:  # a hole may lie in a hole
        before = text
        for pattern in _HOLES:
            text, links = _apply(text, links, [(m.start(), m.end(), "") for m in pattern.finditer(text)])
    text, links = _apply(text, links, [(m.start(), m.end(), " ") for m in _SPACES.finditer(text) if m[0] != " "])
    text, links = _apply(text, links, [(m.start(), m.end(), "") for m in _SPACE_BEFORE.finditer(text)])
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


def _apply(text: str, links: list[Link], edits: list[Edit]) -> tuple[str, list[Link]]:
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
