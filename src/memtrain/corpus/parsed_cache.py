"""Passages of a dump, parsed once: a Parquet file in the cache, keyed by dump, settings and code."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mwparserfromhell
import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.assets import cache_home
from memtrain.corpus import mediawiki, pages, pruning, templates, tidy, wikitext
from memtrain.corpus.pages import ReadReport, Skipped
from memtrain.recipe import CorpusSettings
from memtrain.types import Entity, Passage

_ROWS = 1024
_END = 1 << 20
_REPORT = b"memtrain.report"
_ENTITY = pa.struct(
    [
        ("text", pa.string()),
        ("starts", pa.list_(pa.int32())),
        ("ends", pa.list_(pa.int32())),
        ("aliases", pa.list_(pa.string())),
    ]
)
SCHEMA = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("links", pa.list_(_ENTITY))])
"""Passages on disk."""


class Store:
    """The place of one dump's passages under these settings."""

    def __init__(self, dump: Path, settings: CorpusSettings) -> None:
        stat = dump.stat()
        digest = hashlib.sha256()
        # A whole dump takes a minute to hash; its size and both ends tell two dumps apart as well.
        with open(dump, "rb") as handle:
            digest.update(handle.read(_END))
            handle.seek(max(0, stat.st_size - _END))
            digest.update(handle.read(_END))
        key: list[Any] = [dump.name, stat.st_size, stat.st_mtime_ns, digest.hexdigest()]
        key += [settings.min_chars, settings.max_chars, settings.max_passages]
        key += [mwparserfromhell.__version__, code_checksum()]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
        self.path = cache_home() / "parsed" / f"{name}.parquet"

    def usable(self) -> bool:
        """Whether the passages are there, whole (a file appears in one move, and opens only if it is complete)."""
        try:
            with pq.ParquetFile(self.path) as file:
                return _REPORT in (file.metadata.metadata or {})
        except (OSError, pa.ArrowException):
            return False

    def read(self, report: ReadReport) -> Iterator[Passage]:
        """The passages, and the report of the time they were parsed."""
        with pq.ParquetFile(self.path) as file:
            stored = json.loads(file.metadata.metadata[_REPORT])
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    report.passages += 1
                    yield to_passage(row)
        report.pages += stored["pages"]
        report.skipped += [Skipped(**item) for item in stored["skipped"]]
        report.skipped_more += stored["skipped_more"]
        report.aliases.update(stored["aliases"])
        for reason, count in stored["dropped"].items():
            report.drop(reason, count)

    def write(self, passages: Iterable[Passage], report: ReadReport) -> Iterator[Passage]:
        """Pass the passages on and keep them; only a stream read to its end is kept, and only if it gave any.

        A full disk costs the cache, not the reading.
        """
        writer: _Writer | None = _Writer(self.path)
        try:
            for passage in passages:
                if writer is not None and not writer.add(passage):
                    writer = None
                yield passage
            if writer is not None and report.passages:
                writer.finish(report)
        finally:
            if writer is not None:
                writer.discard()


@functools.cache
def code_checksum() -> str:
    """Checksum of the modules that decide what a passage is: a change there makes old files unused."""
    digest = hashlib.sha256()
    for module in (mediawiki, pages, pruning, templates, tidy, wikitext):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


class _Writer:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.temporary: Path | None = None
        self.file: pq.ParquetWriter | None = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".parsed-", dir=path.parent)
            os.close(descriptor)
            self.temporary = Path(name)
            self.file = pq.ParquetWriter(name, SCHEMA, compression="zstd")

    def add(self, passage: Passage) -> bool:
        """False where the disk takes no more."""
        self.rows.append(to_row(passage))
        return len(self.rows) < _ROWS or self._flush()

    def _flush(self) -> bool:
        try:
            if self.file is None:
                raise OSError("no file")
            if self.rows:
                self.file.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
            self.rows = []
        except OSError:
            self.discard()
            return False
        return True

    def finish(self, report: ReadReport) -> None:
        stored = json.dumps(dataclasses.asdict(report))
        if not self._flush() or self.file is None or self.temporary is None:
            return
        try:
            self.file.add_key_value_metadata({_REPORT.decode(): stored})
            self.file.close()
            os.chmod(self.temporary, 0o644)
            os.replace(self.temporary, self.path)
        except OSError:
            self.discard()

    def discard(self) -> None:
        """Leave nothing behind; without effect after :meth:`finish`."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.close()
            self.file = None
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)


def to_row(passage: Passage) -> dict[str, Any]:
    """A passage as a row of :data:`SCHEMA`."""
    links = [_plain(entity) for entity in passage.entities]
    return {"id": passage.id, "title": passage.title, "text": passage.text, "links": links}


def to_passage(row: dict[str, Any]) -> Passage:
    """What :func:`to_row` made a row of."""
    return Passage(row["id"], row["title"], row["text"], tuple(map(_entity, row["links"])))


def _plain(entity: Entity) -> dict[str, Any]:
    starts, ends = zip(*entity.spans, strict=True)
    return {"text": entity.text, "starts": starts, "ends": ends, "aliases": entity.aliases}


def _entity(row: dict[str, Any]) -> Entity:
    spans = tuple(zip(row["starts"], row["ends"], strict=True))
    return Entity(row["text"], spans, "link", "links", tuple(row["aliases"]))
