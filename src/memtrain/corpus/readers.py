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
from memtrain.corpus.pages import DAMAGED, Page, ReadReport, Skipped
from memtrain.corpus.passages import PassageCounter
from memtrain.errors import UserError
from memtrain.recipe import CorpusSettings
from memtrain.types import Passage

__all__ = ["ReadReport", "Skipped", "read_passages"]

Progress = Callable[[str, int, int], None]
"""Told ``("reading bytes", done, total)``, counted as they lie on the disk; total 0 where it is not known."""
_WHAT = "reading bytes"

COMPRESSED: dict[str, Callable[..., IO[bytes]]] = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}  # type: ignore[dict-item]
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
    settings = checked(settings)
    counter = PassageCounter(settings, report)
    if settings.source.startswith("hf:"):
        yield from read_hub(settings, counter)
        finished = 0
    else:
        path = resolve(settings.source)
        files = files_of(path)
        total = sum(file.stat().st_size for file in files)
        finished = 0
        for file in files:
            yield from read_file(file, path, settings, counter, (finished, total, progress))
            finished += file.stat().st_size
            if counter.full:
                break
    if progress is not None:
        progress(_WHAT, finished, finished)
    if not report.passages:
        raise UserError(no_passage(settings, report))


def checked(settings: CorpusSettings) -> CorpusSettings:
    """The settings, with a built-in corpus's own columns. Raises :class:`UserError` where no passage can fit them."""
    if settings.min_chars > settings.max_chars:
        raise UserError(
            f"corpus.min_chars = {settings.min_chars} is more than corpus.max_chars = {settings.max_chars}: no passage "
            "can be both; lower the first or raise the second"
        )
    fields = _BUILTIN_FIELDS.get(settings.source, {})
    if fields and settings.text_field == CorpusSettings.model_fields["text_field"].default:
        return settings.model_copy(update=fields)
    return settings


def read_hub(settings: CorpusSettings, counter: PassageCounter) -> Iterator[Passage]:
    """Passages of a Hugging Face dataset. Raises :class:`UserError` as :func:`read_passages`."""
    try:
        name = settings.source.removeprefix("hf:")
        yield from counter.passages(records.read_hub(name, settings, counter.report))
    except records.NoTextColumn as error:
        raise no_column(settings, error) from None


def place_of(file: Path, root: Path) -> str:
    """How a file of the corpus ``root`` is named in reports."""
    return file.name if file == root else file.relative_to(root).as_posix()


def read_file(
    file: Path,
    root: Path,
    settings: CorpusSettings,
    counter: PassageCounter,
    place: tuple[int, int, Progress | None],
    cached: bool = True,
) -> Iterator[Passage]:
    """Passages of one file of the corpus ``root``; what cannot be read goes to the counter's report.

    ``place``: bytes before this file, bytes of all, and who is told; ``cached``: keep the passages of a dump.
    Raises :class:`UserError` where the file is the whole corpus and lacks the text column.
    """
    report = counter.report
    where = place_of(file, root)
    cached = cached and file == root
    try:
        kind = kind_of(file)
        if kind is None:
            report.skip(where, f"unknown kind of file ({file.suffix or 'no ending'})")
            return
        if kind == "parquet":
            yield from counter.passages(records.read_parquet(file, where, settings, report))
            return
        if kind == "mediawiki":
            stored = parsed_cache.Store(file, settings)
            if cached and stored.usable():
                yield from stored.read(report)
                return
            passages = counter.passages(_pages(file, where, kind, settings, report, place))
            yield from stored.write(passages, report) if cached else passages
            return
        yield from counter.passages(_pages(file, where, kind, settings, report, place))
    except records.NoTextColumn as error:
        if file == root:
            raise no_column(settings, error) from None
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
    opener = COMPRESSED.get(file.suffix.lower())
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


def kind_of(file: Path) -> str | None:
    """What its name says a file is: ``mediawiki``, ``parquet``, ``json``, ``markdown``, ``text``; None: unreadable."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in _KINDS:
        return _KINDS[last]
    # Pieces of a dump are named "….xml-p10p30302.bz2", WikiExtractor's "wiki_00".
    return "mediawiki" if last.startswith(".xml-p") or ".xml-p" in file.name else None


def _stem(file: Path) -> str:
    name = file.name
    while Path(name).suffix.lower() in COMPRESSED or (Path(name).suffix.lower() in _KINDS and Path(name).suffix):
        name = Path(name).stem
    return name


def resolve(source: str) -> Path:
    """File or folder of a source. Raises :class:`UserError` where there is none."""
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


def files_of(path: Path) -> list[Path]:
    """The files of a corpus in its order, hidden ones left out."""
    if not path.is_dir():
        return [path]
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return [path / file for file in sorted(inside) if not any(part.startswith(".") for part in file.parts)]


def no_column(settings: CorpusSettings, error: records.NoTextColumn) -> UserError:
    """The sentence for rows without the text column."""
    return UserError(
        f"{error.where} ({settings.source}) has no column {error.field!r}: set corpus.text_field to one of "
        f"{', '.join(error.columns) or '(it has no columns)'}"
    )


def no_passage(settings: CorpusSettings, report: ReadReport) -> str:
    """The sentence for a corpus that gives nothing."""
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
