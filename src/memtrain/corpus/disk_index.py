"""BM25 over more passages than memory holds: a tantivy index on the disk (extra ``scale``).

tantivy is Lucene's design in Rust: memory-mapped segments, a writer that is given its memory, and queries that skip
most of what they cannot need. Terms and stop list are those of :class:`memtrain.corpus.neighbours.Bm25Neighbours`, but
passage lengths are kept in a byte and only rare terms are asked for, so the order is not quite the same.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from memtrain.corpus.neighbours import Bm25Neighbours, words
from memtrain.corpus.whole import whole_folder
from memtrain.errors import UserError
from memtrain.types import Passage

HEAP = 64 << 20
"""Bytes of postings that the writer collects before it writes a segment."""
QUERY_TERMS = 32
"""The rarest terms of a passage that are asked for: they decide the order, and the common ones decide the time."""
_FIELD, _NUMBER, _DONE = "terms", "number", "done.json"
_SPARE = 32
_MOST = 4096
_DIGITS = 3

Told = Callable[[int], None]


def build_index(texts: Iterable[str], folder: Path, told: Told | None = None) -> None:
    """Index texts by their number; ``folder`` appears when the index is whole, and an index that is there is kept.

    Memory: :data:`HEAP` and what merging takes. Raises :class:`UserError` without tantivy, OSError for a full disk.
    """
    if (folder / _DONE).exists():
        return
    tantivy = _tantivy()
    with whole_folder(folder) as temporary:
        writer = tantivy.Index(_schema(tantivy), path=str(temporary)).writer(HEAP, 1)
        count = 0
        try:
            for count, text in enumerate(texts, 1):
                document = tantivy.Document()
                document.add_text(_FIELD, " ".join(words(text)))
                document.add_unsigned(_NUMBER, count - 1)
                writer.add_document(document)
                if told is not None and count % 1000 == 0:
                    told(count)
            writer.commit()
        except ValueError as error:  # tantivy's only exception: its message tells a full disk
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary)) from None
            raise
        finally:
            writer.wait_merging_threads()  # or they would write on while the folder goes away
        (temporary / _DONE).write_text(json.dumps({"passages": count}))


class DiskNeighbours:
    """Nearest passages by an index that :func:`build_index` made of the texts of ``passages``."""

    def __init__(self, passages: Sequence[Passage], folder: Path) -> None:
        tantivy = self._tantivy = _tantivy()
        self._passages = passages
        self._schema = _schema(tantivy)
        self._searcher = tantivy.Index(self._schema, path=str(folder)).searcher()
        self._limit = max(10, Bm25Neighbours.COMMON * len(passages))

    def nearest(self, index: int, n: int) -> list[int]:
        """At most ``n`` passages that share a rare term with passage ``index``, best first; ties: lower index first."""
        terms = self._query(index)
        if not terms or n < 1:
            return []
        tantivy = self._tantivy
        asked = [tantivy.Query.term_query(self._schema, _FIELD, term, "freq") for term in terms]
        query = tantivy.Query.boolean_query([(tantivy.Occur.Should, one) for one in asked])
        wanted = n + 1 + _SPARE
        while True:
            hits = self._searcher.search(query, wanted, count=False).hits
            scores = [round(score, _DIGITS) for score, _ in hits]
            # Which of equal ones are found first depends on the segments: so all equals of the last are looked at.
            if len(hits) < wanted or scores[-1] < scores[n] or wanted >= _MOST:
                break
            wanted *= 4
        numbers = self._searcher.fast_field_values(_NUMBER, [address for _, address in hits])
        ranked = sorted((-score, int(number)) for score, number in zip(scores, numbers, strict=True))
        return [number for _, number in ranked if number != index][:n]

    def _query(self, index: int) -> list[str]:
        terms = dict.fromkeys(words(self._passages[index].text))
        counted = [(self._searcher.doc_freq(_FIELD, term), term) for term in terms]
        rare = [pair for pair in counted if pair[0] <= self._limit] or counted
        return [term for _, term in sorted(rare)[:QUERY_TERMS]]

    def prefetch(self, indices: Sequence[int], n: int) -> None:
        """Nothing to gain: one query at a time."""


class TemporaryNeighbours(DiskNeighbours):
    """The same for passages in memory, with an index that goes away with it."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="memtrain-index-")
        folder = Path(self._folder.name) / "index"
        build_index((passage.text for passage in passages), folder)
        super().__init__(passages, folder)


def _schema(tantivy: Any) -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(_FIELD, stored=False, tokenizer_name="whitespace", index_option="freq")
    builder.add_unsigned_field(_NUMBER, fast=True)
    return builder.build()


def _tantivy() -> Any:
    try:
        import tantivy
    except ImportError as error:
        raise UserError(
            f"key 'documents.neighbours': the index on the disk needs tantivy ({error}): pip install "
            "'memtrain[scale]', or use \"bm25\" with a smaller corpus.max_passages"
        ) from None
    return tantivy
