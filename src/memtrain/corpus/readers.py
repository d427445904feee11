"""Unlabelled text to passages: one stream, whatever the source.

``corpus.source`` is a built-in name, a file, a folder with a mix of files, or ``hf:dataset[:config]``. Files are told
apart by their ending, and by their first bytes where the ending says nothing. Memory does not grow with the corpus.
"""

from __future__ import annotations

import bz2
import difflib
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from memtrain import assets
from memtrain.corpus import parsed_cache, plain, records
from memtrain.corpus.mediawiki import read_dump
from memtrain.corpus.pages import DAMAGED, Page, Paragraph, ReadReport, Skipped, cut
from memtrain.errors import UserError
from memtrain.recipe import CorpusSettings
from memtrain.types import Entity, Passage

__all__ = ["ReadReport", "Skipped", "read_passages"]

Progress = Callable[[str, int, int], None]
"""Told ``("reading bytes", done, total)``, counted as they lie on the disk; total 0 where it is not known."""
_WHAT = "reading bytes"

_COMPRESSED: dict[str, Callable[..., IO[bytes]]] = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}  # type: ignore[dict-item]
_KINDS = {
    ".xml": "mediawiki",
    ".parquet": "parquet",
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".md", ".markdown", ".mdown"), "markdown"),
    **dict.fromkeys((".txt", ".text", ".utf8", ""), "text"),
}
_BUILTIN_FIELDS = {"vital-articles": {"text_field": "extract"}}
READABLE = ".xml, .parquet, .jsonl, .json, .txt, .md (each also .bz2, .gz or .xz) or WikiExtractor files"


def read_passages(settings: CorpusSettings, report: ReadReport, progress: Progress | None = None) -> Iterator[Passage]:
    """Passages of the corpus in its order, streamed; ``report`` is whole when the stream has ended.

    A passage has ``min_chars`` to ``max_chars`` characters, a unique id ``<page>#<paragraph>``, and the wiki links of
    its source as entities. The stream stops after ``max_passages``.

    Raises :class:`UserError` where the source does not exist, lacks the text column, or gives no passage at all.
    """
    if settings.min_chars > settings.max_chars:
        raise UserError(
            f"corpus.min_chars = {settings.min_chars} is more than corpus.max_chars = {settings.max_chars}: no passage "
            "can be both; lower the first or raise the second"
        )
    counter = _Counter(settings, report)
    if settings.source.startswith("hf:"):
        try:
            pages = records.read_hub(settings.source.removeprefix("hf:"), settings, report)
            yield from counter.passages(pages)
        except records.NoTextColumn as error:
            raise _no_column(settings, error) from None
        finished = 0
    else:
        path = _resolve(settings.source)
        fields = _BUILTIN_FIELDS.get(settings.source, {})
        if fields and settings.text_field == CorpusSettings.model_fields["text_field"].default:
            settings = settings.model_copy(update=fields)
        files = _files(path)
        total = sum(file.stat().st_size for file in files)
        finished = 0
        for file in files:
            yield from _read_file(file, path, settings, counter, (finished, total, progress))
            finished += file.stat().st_size
            if counter.full:
                break
    if progress is not None:
        progress(_WHAT, finished, finished)
    if not report.passages:
        raise UserError(_nothing(settings, report))


class _Counter:
    """Pages to passages, with ids, counts and limits."""

    def __init__(self, settings: CorpusSettings, report: ReadReport) -> None:
        self.settings, self.report = settings, report
        self.seen: dict[str, int] = {}  # page keys with passages: bounded by max_passages

    @property
    def full(self) -> bool:
        return self.report.passages >= self.settings.max_passages

    def passages(self, pages: Iterator[Page]) -> Iterator[Passage]:
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
                    key = self._unique(page.key)
                    self.report.pages += 1
                self.report.passages += 1
                yield Passage(f"{key}#{number}", page.title, piece.text, _entities(piece))
                number += 1

    def _unique(self, key: str) -> str:
        self.seen[key] = count = self.seen.get(key, 0) + 1
        if count == 1:
            return key
        return self._unique(f"{key} ({count})")


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


def _read_file(
    file: Path, root: Path, settings: CorpusSettings, counter: _Counter, place: tuple[int, int, Progress | None]
) -> Iterator[Passage]:
    report = counter.report
    where = file.name if file == root else file.relative_to(root).as_posix()
    try:
        kind = _kind(file)
        if kind is None:
            report.skip(where, f"unknown kind of file ({file.suffix or 'no ending'})")
            return
        if kind == "parquet":
            yield from counter.passages(records.read_parquet(file, where, settings, report))
            return
        if kind == "mediawiki":
            stored = parsed_cache.Store(file, settings)
            if root == file and stored.usable():
                yield from stored.read(report)
                return
            passages = counter.passages(_pages(file, where, kind, settings, report, place))
            yield from stored.write(passages, report) if root == file else passages
            return
        yield from counter.passages(_pages(file, where, kind, settings, report, place))
    except records.NoTextColumn as error:
        if file == root:
            raise _no_column(settings, error) from None
        report.skip(where, str(error))
    except OSError as error:
        report.skip(where, f"cannot be opened: {error.strerror or error}")


def _pages(
    file: Path,
    where: str,
    kind: str,
    settings: CorpusSettings,
    report: ReadReport,
    place: tuple[int, int, Progress | None],
) -> Iterator[Page]:
    before, total, progress = place
    title = _stem(file)
    with open(file, "rb") as raw, _opened(raw, file) as handle:
        head = _head(handle, where, report)
        if head is None:
            return
        if kind == "text" and head.lstrip().startswith(b"<doc "):
            pages = plain.read_wikiextractor(handle, where, report)
        elif kind == "mediawiki" or (kind == "text" and head.lstrip().startswith((b"<mediawiki", b"<?xml"))):
            pages = read_dump(handle, where, report)
        elif kind == "json" or (kind == "text" and not file.suffix and head.lstrip().startswith(b'{"')):
            pages = records.read_json(handle, where, settings, report)
        elif b"\0" in head:
            report.skip(where, "binary data, not text")
            return
        elif kind == "markdown":
            pages = plain.read_markdown(handle, where, title, report)
        else:
            pages = plain.read_text(handle, where, title, report)
        for page in pages:
            if progress is not None:
                progress(_WHAT, before + raw.tell(), total)
            yield page


def _opened(raw: IO[bytes], file: Path) -> IO[bytes]:
    opener = _COMPRESSED.get(file.suffix.lower())
    return opener(raw) if opener else raw


def _head(handle: IO[bytes], where: str, report: ReadReport) -> bytes | None:
    """The first bytes, with the handle back at the start; None where not even these can be read."""
    try:
        head = handle.read(4096)
    except EOFError:
        report.skip(where, "truncated")
        return None
    except DAMAGED as error:
        report.skip(where, f"damaged: {error}")
        return None
    if not head:
        report.skip(where, "empty file")
        return None
    handle.seek(0)
    return head


def _kind(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in _KINDS:
        return _KINDS[last]
    # Pieces of a dump are named "….xml-p10p30302.bz2", WikiExtractor's "wiki_00".
    return "mediawiki" if last.startswith(".xml-p") or ".xml-p" in file.name else None


def _stem(file: Path) -> str:
    name = file.name
    while Path(name).suffix.lower() in _COMPRESSED or (Path(name).suffix.lower() in _KINDS and Path(name).suffix):
        name = Path(name).stem
    return name


def _resolve(source: str) -> Path:
    builtin = assets.corpus_path(source)
    if builtin is not None:
        return builtin
    path = Path(source).expanduser()
    if path.exists():
        return path
    near = difflib.get_close_matches(source, assets.CORPORA, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"corpus.source = {source!r} is neither a file nor a folder nor a built-in corpus: {hint}built-in are "
        f"{', '.join(assets.CORPORA)}; a dataset of the hub is written hf:NAME"
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return [path / file for file in sorted(inside) if not any(part.startswith(".") for part in file.parts)]


def _no_column(settings: CorpusSettings, error: records.NoTextColumn) -> UserError:
    return UserError(
        f"{error.where} ({settings.source}) has no column {error.field!r}: set corpus.text_field to one of "
        f"{', '.join(error.columns) or '(it has no columns)'}"
    )


def _nothing(settings: CorpusSettings, report: ReadReport) -> str:
    why = []
    if report.skipped:
        count = len(report.skipped) + report.skipped_more
        first = report.skipped[0]
        why.append(f"{count} unreadable, first {first.where}: {first.reason}")
    why += [f"{count} {reason}" for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1])]
    return (
        f"corpus.source = {settings.source!r} gives no passage of {settings.min_chars} characters or more "
        f"({'; '.join(why) or 'it holds no text'}): name a corpus with text in {READABLE}, or lower corpus.min_chars"
    )
