"""Rows with a text column: Parquet, JSON lines, JSON documents, Hugging Face datasets."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from memtrain.corpus.pages import Page, ReadReport, plain_paragraphs
from memtrain.corpus.plain import WIKITEXT_TITLE, blocks, decoded_lines, read_wikitext_lines
from memtrain.errors import UserError
from memtrain.recipe import CorpusSettings

Row = tuple[str, Mapping[str, Any]]
"""Where it stands (``file:line``), and its columns."""
_PEEK = 64
"""Rows looked at to tell WikiText's one-line rows from whole texts."""


class NoTextColumn(Exception):
    """The file has rows, and none of their columns is the one asked for."""

    def __init__(self, where: str, field: str, columns: Iterable[str]) -> None:
        self.where, self.field, self.columns = where, field, sorted(columns)
        super().__init__(f"no column {field!r}; its columns are {', '.join(self.columns) or 'none'}")


def read_parquet(path: Path, where: str, settings: CorpusSettings, report: ReadReport) -> Iterator[Page]:
    """Pages of a Parquet file, a batch of rows in memory at a time. Raises :class:`NoTextColumn`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if settings.text_field not in names:
                raise NoTextColumn(where, settings.text_field, names)
            columns = [name for name in (settings.text_field, settings.title_field) if name in names]
            yield from pages_of(_parquet_rows(file, columns, where, report), where, settings, report)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        report.skip(where, f"not readable as Parquet: {' '.join(str(error).split())[:100]}")


def _parquet_rows(file: Any, columns: list[str], where: str, report: ReadReport) -> Iterator[Row]:
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=columns):
        for index in range(batch.num_rows):
            number += 1
            try:
                row = {name: batch.column(name)[index].as_py() for name in columns}
            except UnicodeDecodeError:
                report.skip(f"{where}:{number}", "not UTF-8")
                continue
            yield f"{where}:{number}", row


def read_json(handle: IO[bytes], where: str, settings: CorpusSettings, report: ReadReport) -> Iterator[Page]:
    """Pages of JSON lines, or of one JSON array or object of records. Raises :class:`NoTextColumn`."""
    yield from pages_of(_checked(_json_rows(handle, where, report), where, settings), where, settings, report)


def _json_rows(handle: IO[bytes], where: str, report: ReadReport) -> Iterator[Row]:
    lines = decoded_lines(handle, where, report)
    for number, line in lines:
        text = line.strip()
        if not text:
            continue
        if number == 1 and (text in ("{", "[") or not _is_record(text)) and text[0] in "{[":
            yield from _document_rows(itertools.chain([line], (rest for _, rest in lines)), where, report)
            return
        try:
            value = json.loads(text)
        except ValueError as error:
            report.skip(f"{where}: line {number}", f"bad JSON: {error}")
            continue
        if isinstance(value, dict):
            yield f"{where}:{number}", value
        else:
            report.skip(f"{where}: line {number}", f"not a JSON object but {type(value).__name__}")


def _is_record(text: str) -> bool:
    """Whether a first line is a whole JSON object whose values are not records themselves."""
    try:
        value = json.loads(text)
    except ValueError:
        # A broken first line of JSON lines: to be skipped, unless it begins a document over several lines.
        return text.endswith("}") and len(text) > 1
    return isinstance(value, dict) and not (value and all(isinstance(entry, dict) for entry in value.values()))


def _document_rows(lines: Iterable[str], where: str, report: ReadReport) -> Iterator[Row]:
    """Records of one JSON array, or of one object ``{"name": {record}, …}``, decoded one at a time."""
    decoder = json.JSONDecoder()
    source = iter(lines)
    buffer = next(source).lstrip()
    keyed = buffer.startswith("{")
    buffer = buffer[1:]
    count = 0
    while True:
        buffer = buffer.lstrip(" \t\r\n,")
        try:
            if buffer[:1] in ("]", "}"):
                return
            position, name = 0, ""
            if keyed:
                name, position = decoder.raw_decode(buffer)
                position = _after_colon(buffer, position)
            value, end = decoder.raw_decode(buffer, position)
            if end == len(buffer):
                raise ValueError("a value may go on in the next line")
        except ValueError as error:
            more = list(itertools.islice(source, 64))
            if not more:
                report.skip(f"{where}: record {count + 1}", "truncated" if not buffer else f"bad JSON: {error}")
                return
            # Joined pieces, not one line a time: a record over many lines would be decoded as often otherwise.
            buffer += "\n" + "\n".join(more)
            continue
        buffer = buffer[end:]
        count += 1
        if isinstance(value, dict):
            yield f"{where}:{count}", value if not keyed else {"title": name, **value}
        else:
            report.skip(f"{where}: record {count}", f"not a JSON object but {type(value).__name__}")


def _after_colon(buffer: str, position: int) -> int:
    while buffer[position : position + 1].isspace():
        position += 1
    if buffer[position : position + 1] != ":":
        raise ValueError("a key without a value")
    position += 1
    while buffer[position : position + 1].isspace():
        position += 1
    return position


def read_hub(name: str, settings: CorpusSettings, report: ReadReport) -> Iterator[Page]:
    """Pages of a Hugging Face dataset ``NAME[:CONFIG]``, streamed.

    Raises :class:`UserError` without the ``datasets`` library or where the hub does not give the dataset.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f'corpus.source = "hf:{name}" needs the datasets library: pip install "memtrain[hub]"'
        ) from None
    repository, _, config = name.partition(":")
    try:
        data = load_dataset(repository, config or None, split=settings.split, streaming=True)
        rows = iter(data)
        first = next(rows, None)
    except Exception as error:  # the library raises whatever its network stack raises
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f'corpus.source = "hf:{name}" (split {settings.split!r}) cannot be read from the hub: '
            f"{type(error).__name__}: {message}"
        ) from None
    numbered = (
        (f"hf:{name}:{number}", row) for number, row in enumerate(itertools.chain([first] if first else [], rows), 1)
    )
    yield from pages_of(_checked(numbered, f"hf:{name}", settings), f"hf:{name}", settings, report)


def _checked(rows: Iterator[Row], where: str, settings: CorpusSettings) -> Iterator[Row]:
    """Raise :class:`NoTextColumn` where the first row lacks the text column."""
    first = next(rows, None)
    if first is None:
        return
    if settings.text_field not in first[1]:
        raise NoTextColumn(where, settings.text_field, first[1])
    yield first
    yield from rows


def pages_of(rows: Iterator[Row], where: str, settings: CorpusSettings, report: ReadReport) -> Iterator[Page]:
    """A page a row; rows that are WikiText's lines are joined to articles. Rows without text are listed."""
    head = list(itertools.islice(rows, _PEEK))
    rows = itertools.chain(head, rows)
    texts = [row.get(settings.text_field) for _, row in head]
    if any(isinstance(text, str) and WIKITEXT_TITLE.fullmatch(text) for text in texts):
        yield from read_wikitext_lines((str(row.get(settings.text_field) or "") for _, row in rows), where)
        return
    for place, row in rows:
        text, title = row.get(settings.text_field), row.get(settings.title_field)
        if not isinstance(text, str):
            reason = f"no text in column {settings.text_field!r}"
            report.skip(place, reason if text is None else f"{reason} but {type(text).__name__}")
            continue
        title = title if isinstance(title, str) else ""
        yield Page(title or place, title, list(plain_paragraphs(blocks(text.splitlines()))))
