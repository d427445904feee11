"""A corpus that stays on the disk: its passages by number, its redirects, its pages."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from memtrain.corpus.entities import LinksFinder, page_of
from memtrain.corpus.join import FACTS, PAGES, TABLES, rows_path
from memtrain.corpus.pages import ReadReport, Skipped
from memtrain.corpus.parsed_cache import to_passage
from memtrain.corpus.shard_store import ROWS
from memtrain.types import Entity, Passage

_EDGES = ",;:.!?·'\u2019–—-"


class DiskCorpus:
    """What :func:`memtrain.corpus.join.join` wrote. Memory: the passages asked for last, a few dozen MB."""

    FILES, BATCHES, PASSAGES = 128, 512, 4096
    """How many of each are kept."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.folder = folder
        self.linked: int = facts["linked"]
        self.pages: int = facts["pages"]
        self.rows: int = facts["starts"][-1]
        self.unusable: list[int] = facts["unusable"]
        """Rows that spell a mask token, ascending."""
        skipped = [Skipped(**item) for item in facts["report"].pop("skipped")]
        self.report = ReadReport(**facts["report"], skipped=skipped)
        """Whole but for its ``aliases``, which are :class:`Redirects`."""
        self.redirects: int = facts["redirects"]
        self._names, self._starts, self._renamed = facts["files"], facts["starts"], bool(facts["renamed"])
        self._tables = sqlite3.connect(f"file:{folder / TABLES}?mode=ro&immutable=1", uri=True)
        self._first = _numbers(folder / PAGES)
        self._file = lru_cache(self.FILES)(self._open)
        self._batch_of = lru_cache(self.BATCHES)(lambda shard, number: self._file(shard).get_batch(number))
        self._passage = lru_cache(self.PASSAGES)(self.read)

    def summary_report(self) -> ReadReport:
        """The report, with as many redirects as there are; their names stay on the disk."""
        return dataclasses.replace(self.report, redirects=self.redirects)

    def _open(self, number: int) -> pa.ipc.RecordBatchFileReader:
        source = pa.OSFile(str(self.folder / self._names[number]))  # not mapped: the batches are compressed anyway
        return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False))

    def passage(self, row: int) -> Passage:
        """The passage in this row of the corpus, with its final id."""
        return self._passage(row)

    def _batch(self, row: int) -> tuple[pa.RecordBatch, int]:
        shard = bisect.bisect_right(self._starts, row) - 1
        number, place = divmod(row - self._starts[shard], ROWS)
        return self._batch_of(shard, number), place

    def read(self, row: int, links: Sequence[int] | None = None) -> Passage:
        """The same, for one that will not be asked for again; ``links``: only these, by their number."""
        batch, place = self._batch(row)
        (values,) = batch.slice(place, 1).to_pylist()
        if links is not None:
            values["links"] = [values["links"][at] for at in links]
        if self._renamed:
            page = int(np.searchsorted(self._first, row, side="right")) - 1
            found = self._tables.execute("SELECT key FROM renamed WHERE number = ?", (page,)).fetchone()
            if found:
                values["id"] = f"{found[0]}#{values['id'].rpartition('#')[2]}"
        return to_passage(values)

    def text(self, row: int) -> str:
        """The text in this row, without the rest of the passage."""
        batch, place = self._batch(row)
        return str(batch.column("text")[place].as_py())

    def rows_of(self, passage: Passage) -> range:
        """The rows of the page that ``passage`` comes from; they lie in one shard."""
        found = self._tables.execute("SELECT number FROM page WHERE key = ?", (page_of(passage),)).fetchone()
        page = int(found[0])
        end = int(self._first[page + 1]) if page + 1 < len(self._first) else self.rows
        return range(int(self._first[page]), end)

    def link_texts(self, rows: range) -> list[list[str]]:
        """The texts of the links in each of these rows, without the rest of the passages."""
        texts: list[list[str]] = []
        row = rows.start
        while row < rows.stop:
            batch, place = self._batch(row)
            links = batch.column("links").slice(place, rows.stop - row)
            offsets = links.offsets.to_pylist()
            flat = links.values.field("text").slice(offsets[0], offsets[-1] - offsets[0]).to_pylist()
            texts += [flat[start - offsets[0] : end - offsets[0]] for start, end in itertools.pairwise(offsets)]
            row += len(links)
        return texts

    def aliases_of(self, title: str) -> tuple[str, ...]:
        """Titles that redirect to ``title``, in the order of the corpus."""
        found = self._tables.execute("SELECT redirect FROM alias WHERE title = ? ORDER BY place", (title,))
        return tuple(name for (name,) in found)


def _numbers(path: Path) -> np.ndarray:
    return np.memmap(path, dtype=np.int64, mode="r") if path.stat().st_size else np.zeros(0, dtype=np.int64)


class _Usable(Sequence[int]):
    """All rows but those that are left out."""

    def __init__(self, rows: int, left_out: Sequence[int]) -> None:
        self.rows = rows - len(left_out)
        self._before = [row - place for place, row in enumerate(left_out)]

    def __len__(self) -> int:
        return self.rows

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self.rows))]
        if not 0 <= index < self.rows:
            raise IndexError(index)
        return index + bisect.bisect_right(self._before, index)


class DiskPassages(Sequence[Passage]):
    """The passages of one side, or of the whole corpus without those that spell a mask token."""

    def __init__(self, corpus: DiskCorpus, split: str | None = None) -> None:
        self.corpus = corpus
        self.rows: np.ndarray | _Usable
        if split is None:
            self.rows = _Usable(corpus.rows, corpus.unusable)
        else:
            self.rows = _numbers(rows_path(corpus.folder, split))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        if isinstance(index, slice):
            return [self.corpus.passage(int(row)) for row in self.rows[index]]
        return self.corpus.passage(int(self.rows[index]))

    def __iter__(self) -> Iterator[Passage]:
        return (self.corpus.read(int(row)) for row in self.rows)

    def texts(self) -> Iterator[str]:
        """The texts in order, without the rest of the passages."""
        return (self.corpus.text(int(row)) for row in self.rows)


class Redirects(Mapping[str, Sequence[str]]):
    """Title -> titles that redirect to it, looked up on the disk."""

    KEPT = 65_536

    def __init__(self, corpus: DiskCorpus) -> None:
        self.corpus = corpus
        self._kept = lru_cache(self.KEPT)(corpus.aliases_of)

    def __getitem__(self, title: str) -> Sequence[str]:
        found = self._kept(title)
        if not found:
            raise KeyError(title)
        return found

    def __iter__(self) -> Iterator[str]:
        raise TypeError("the redirects of a corpus on the disk can be looked up, not listed")

    def __len__(self) -> int:
        return self.corpus.redirects


class DiskLinksFinder(LinksFinder):
    """:class:`LinksFinder` that looks at a page again for what a passage of it wants, and keeps no page."""

    def __init__(self, corpus: DiskCorpus) -> None:
        super().__init__((), Redirects(corpus))
        self._corpus = corpus

    def names_of(self, passage: Passage) -> Mapping[str, Entity]:
        """See :meth:`LinksFinder.names_of`: only links are read that may stand in this passage."""
        names: dict[str, Entity] = {}
        left_out = set(self._corpus.unusable)
        rows = self._corpus.rows_of(passage)
        seen: set[str] = set()
        first = True  # the first passage tells the title, which a later one may link too
        for row, texts in zip(rows, self._corpus.link_texts(rows), strict=True):
            if row in left_out:
                continue
            wanted = [at for at, text in enumerate(texts) if text not in seen and _core(text) in passage.text]
            if wanted or first:
                seen.update(texts[at] for at in wanted)
                self.learn(names, self._corpus.read(row, wanted))
                first = False
        return names


def _core(text: str) -> str:
    """A part of what :func:`memtrain.corpus.entities.trim` leaves of a link's text."""
    while True:
        shorter = text.strip().strip(_EDGES)
        shorter = shorter[:-2] if shorter.endswith(("'s", "\u2019s")) else shorter
        if shorter == text:
            return text
        text = shorter
