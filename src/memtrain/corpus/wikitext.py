"""Wikitext to plain paragraphs with their links.

Parsing is mwparserfromhell's; what is kept of its tree is decided here. Tables, references, templates that carry no
running text, files, categories, headings, lists and formulas go out; link texts stay, with the page they lead to.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from mwparserfromhell import nodes
from mwparserfromhell.parser import Parser

from memtrain.corpus.pages import Link, Paragraph
from memtrain.corpus.pruning import prune
from memtrain.corpus.templates import is_silent, render
from memtrain.corpus.tidy import tidy

FORMULA = "\ufffc"
"""Stands in a paragraph where a formula was, so that the paragraph can be told from one that is whole."""
_BREAK = "\n\n"
MAX_DEPTH = 100
"""Deepest nesting of brackets that is parsed; the parser's time explodes on thousands that are never closed."""
_BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]")

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
_DIGITS = "0123456789+-−"
_SUPERSCRIPTS = str.maketrans(_DIGITS, "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
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
_LEFTOVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?[a-zA-Z][^<>]*>|<!--|-->|&[a-zA-Z]+;|__[A-Z]{3,}__|\|\|")


def paragraphs_of(
    wikitext: str, file_namespaces: Collection[str] = (), namespaces: Collection[str] = ()
) -> Iterator[Paragraph]:
    """Paragraphs of one page in order, with links; formulas are marked by :data:`FORMULA`.

    ``file_namespaces`` are the lower-case names of the wiki's file and category namespaces, ``namespaces`` of all
    others, as its dump gives them. Raises ValueError for brackets nested (or never closed) more than :data:`MAX_DEPTH`
    deep, and whatever mwparserfromhell raises on text it cannot parse.
    """
    text = _REFERENCE.sub("", _COMMENT_LINE.sub("", wikitext))
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"brackets nested more than {MAX_DEPTH} deep")
    flow = _Flow(DROPPED_NAMESPACES | set(file_namespaces), _OTHER_NAMESPACES | set(namespaces))
    parser = Parser()  # its two halves one by one, to leave out what is not looked at
    tokens = parser._tokenizer.tokenize(_MAGIC_WORD.sub("", text), 0, True)
    code = parser._builder.build(prune(tokens, is_silent, flow.drops_link))
    flow.walk(code.nodes)
    yield from flow.paragraphs()


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        depth = depth + 1 if match[0] in ("{{", "[[") else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


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

    def drops_link(self, title: str) -> bool:
        """Whether a link with this title, as it is written, leaves nothing behind."""
        title = html.unescape(title).strip()
        prefix, colon, _ = title.partition(":")
        return bool(colon) and prefix.strip().replace("_", " ").lower() in self.dropped

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
        elif name == "sup" and (power := str(node.contents).strip()) and not power.strip(_DIGITS):
            self.add(power.translate(_SUPERSCRIPTS))  # "10<sup>3</sup>" must not become 103
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
            paragraph = tidy(text[start:end], inside)
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
