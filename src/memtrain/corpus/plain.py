"""Text files: plain text, Markdown, WikiExtractor's output, WikiText's tokenised lines.

All readers take bytes and decode line by line, so that a bad byte costs a line and a long file no memory.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import IO

from memtrain.corpus.pages import DAMAGED, Page, Paragraph, ReadReport, plain_paragraphs
from memtrain.corpus.tidy import close_holes
from memtrain.corpus.wikitext import has_leftover_markup

LINE_BYTES = 1 << 22
"""A longer line is read in pieces, cut at spaces."""
_WRAP = 120
"""Lines up to this length that follow each other are one paragraph, wrapped; longer lines are paragraphs themselves."""

_DOC = re.compile(r"<doc\b([^>]*)>\s*")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_FORMULA_MARK = re.compile(r"\bformula_\d+")  # what WikiExtractor leaves of <math>
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


def decoded_lines(handle: IO[bytes], where: str, report: ReadReport) -> Iterator[tuple[int, str]]:
    """Numbered lines without their end, decoded from UTF-8; undecodable ones are skipped and listed.

    A stream that is compressed and ends early is listed as ``truncated``.
    """
    number, carry = 0, b""
    try:
        while line := handle.readline(LINE_BYTES):
            whole = line.endswith(b"\n") or len(line) < LINE_BYTES
            line = carry + line
            carry = b""
            if not whole and (space := line.rfind(b" ")) > 0:
                line, carry = line[:space], line[space:]
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                report.skip(f"{where}: line {number}", f"not UTF-8 (byte {error.start + 1})")
    except EOFError:
        report.skip(where, "truncated")
    except DAMAGED as error:
        report.skip(where, f"damaged: {error}")
    if carry:
        yield number + 1, carry.decode("utf-8", errors="replace").rstrip("\r\n")


def blocks(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs of plain text: parted by blank lines; wrapped lines are joined, long lines stand alone."""
    block: list[str] = []
    for line in lines:
        text = line.strip()
        if len(text) > _WRAP or not text:
            if block:
                yield " ".join(block)
                block = []
            if text:
                yield text
        else:
            block.append(text)
    if block:
        yield " ".join(block)


def read_text(handle: IO[bytes], where: str, title: str, report: ReadReport) -> Iterator[Page]:
    """A plain text file is one page, titled by its name."""
    lines = (line for _, line in decoded_lines(handle, where, report))
    yield Page(where, title, plain_paragraphs(blocks(lines)))


def read_markdown(handle: IO[bytes], where: str, title: str, report: ReadReport) -> Iterator[Page]:
    """A Markdown file is one page; code, tables, headings, images and front matter go out, marks are taken off."""
    lines = (line for _, line in decoded_lines(handle, where, report))
    yield Page(where, title, plain_paragraphs(map(_inline, blocks(_markdown_lines(lines)))))


_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r"\s{0,3}#{1,6}(\s|$)")
_RULE = re.compile(r"\s{0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,}|=+\s*)$")
_BULLET = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+(?:\[[ xX]\]\s+)?")
_DEFINITION = re.compile(r"\s{0,3}\[[^\]]+\]:\s+\S")


def _markdown_lines(lines: Iterable[str]) -> Iterator[str]:
    fence = ""
    front_matter = comment = False
    for number, line in enumerate(lines):
        if number == 0 and line.rstrip() == "---":
            front_matter = True
        elif front_matter:
            front_matter = line.rstrip() not in ("---", "...")
        elif fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif comment:
            comment = "-->" not in line
        elif match := _FENCE.match(line):
            fence = match[1]
            yield ""
        elif line.lstrip().startswith("<!--"):
            comment = "-->" not in line
        elif _HEADING.match(line) or _RULE.match(line) or _DEFINITION.match(line) or line.lstrip().startswith("|"):
            yield ""
        elif match := _BULLET.match(line):
            yield line[match.end() :]
        else:
            yield line.lstrip("> ") if line.lstrip().startswith(">") else line


_INLINE = (
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"\[([^\]]+)\]\[[^\]]*\]"), r"\1"),
    (re.compile(r"<(https?://[^>\s]+)>"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>]*>|<!--.*?-->"), ""),
    (re.compile(r"(`+)(.+?)\1"), r"\2"),
    (re.compile(r"(?<![\w*])(\*{1,3})(?=\S)(.+?)(?<=\S)\1(?![\w*])"), r"\2"),
    (re.compile(r"(?<![\w_])(_{1,3})(?=\S)(.+?)(?<=\S)\1(?![\w_])"), r"\2"),
    (re.compile(r"~~(.+?)~~"), r"\1"),
    (re.compile(r"\\([\\`*_{}\[\]()#+.!|>~-])"), r"\1"),
)


def _inline(text: str) -> str:
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return html.unescape(text)


def read_wikiextractor(handle: IO[bytes], where: str, report: ReadReport) -> Iterator[Page]:
    """WikiExtractor's ``<doc id url title>`` format: a page a doc, a paragraph a line, links (if kept) as text."""
    title, key, body = "", "", list[str]()
    inside = False
    for number, line in decoded_lines(handle, where, report):
        if match := _DOC.match(line):
            if inside:
                report.skip(f"{where}: line {number}", f"the page before, {title!r}, has no </doc>")
                yield _extracted(key, title, body, report)
            attributes = dict(_ATTRIBUTE.findall(match[1]))
            title = html.unescape(attributes.get("title", ""))
            key, body, inside = title or f"{where}:{number}", [], True
        elif line.strip() == "</doc>":
            if inside:
                yield _extracted(key, title, body, report)
            inside = False
        elif inside:
            body.append(line)
    if inside:
        report.skip(where, "truncated")
        yield _extracted(key, title, body, report)


def _extracted(key: str, title: str, body: list[str], report: ReadReport) -> Page:
    paragraphs = []
    for paragraph in plain_paragraphs(_TAG.sub("", html.unescape(line)) for line in body if line.strip() != title):
        if _FORMULA_MARK.search(paragraph.text):
            report.drop("formula")
        elif has_leftover_markup(paragraph.text):
            report.drop("leftover markup")
        elif paragraph.text[0] not in "*#•":
            paragraphs.append(Paragraph(close_holes(paragraph.text)))
    return Page(key, title, paragraphs)


WIKITEXT_TITLE = re.compile(r" = (?!=)(.+?)(?<!=) = \s*")
"""A line of WikiText that begins an article."""
_WIKITEXT_HEADING = re.compile(r"\s*(?:= ){2,}.+(?: =){2,}\s*")
_DETOKENISE = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r"(?<=\d) : (?=\d\d)"), ":"),
    (re.compile(r" ([.,;:!?%)\]}])(?=\s|$|[.,;:!?)\]\"'])"), r"\1"),
    (re.compile(r"([(\[{$£€#]) (?=\S)"), r"\1"),
    (re.compile(r" (n't|'s|'re|'ve|'ll|'t|'d|'m|'S)\b"), r"\1"),
    (re.compile(r"(\w)s ' (?=\w)"), r"\1s' "),
    (re.compile(r" – (?=\d)(?<=\d – )"), "–"),
    (re.compile(r"(?<=\d) / (?=\d)"), "/"),
    (re.compile(r" ° "), "° "),
)
_QUOTED = re.compile(r'" ([^"]*?) ?"(?=[\s.,;:!?)\]—-]|$)')


def detokenise(text: str) -> str:
    """WikiText's tokens back to running text: ``0 @.@ 7 – 2`` -> ``0.7–2``, `` , ``, ``( x )``, ``" x "``, `` 's``."""
    for pattern, replacement in _DETOKENISE:
        text = pattern.sub(replacement, text)
    return " ".join(_QUOTED.sub(r'"\1"', text).split())


def read_wikitext_lines(rows: Iterable[str], where: str) -> Iterator[Page]:
    """WikiText's rows (one line each, articles headed `` = Title = ``) as pages, detokenised."""
    title, body = "", list[str]()
    count = 0
    for row in rows:
        # A table's cell may look like a title; a title stands between blank rows, which the caller may have dropped.
        if match := WIKITEXT_TITLE.fullmatch(row):
            if body:
                yield Page(title or f"{where}:{count}", title, list(plain_paragraphs(body)))
            title, body, count = detokenise(match[1]), [], count + 1
        elif row.strip() and not _WIKITEXT_HEADING.fullmatch(row) and "<unk>" not in row:
            body.append(detokenise(row))
    if body:
        yield Page(title or f"{where}:{count}", title, list(plain_paragraphs(body)))
