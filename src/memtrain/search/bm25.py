"""BM25 over a passage set (Robertson and Zaragoza 2009, Lucene's variant) by ``bm25s``; on disk without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memtrain.corpus.neighbours import words

Ranks = list[tuple[int, float]]
"""Numbers of passages with their scores, best first."""


class Bm25Ranker:
    """Ranks the passages of one set. Terms are those of ``corpus.neighbours.words``: any script, no stemming."""

    def __init__(self, index: Any) -> None:
        """``index``: a ``bm25s.BM25``; see :meth:`of` and :meth:`load`."""
        self._index = index

    @classmethod
    def of(cls, texts: Sequence[str]) -> Bm25Ranker:
        """Index texts, at least one."""
        import bm25s

        index = bm25s.BM25(backend="numpy")
        index.index([words(text) or ["-"] for text in texts], show_progress=False)
        return cls(index)

    def rank(self, queries: Sequence[str], topk: int) -> list[Ranks]:
        """For each query at most ``topk`` passages that share a term with it; ties: lower number first."""
        found = []
        for query in queries:
            terms = [term for term in words(query) if term in self._index.vocab_dict]
            scores = self._index.get_scores(terms) if terms else np.zeros(0)
            found.append(best(np.asarray(scores), topk, above=0.0))
        return found

    def save(self, folder: Path) -> None:
        """Write into an existing folder: ``.npy`` arrays and JSON."""
        self._index.save(str(folder), show_progress=False, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Bm25Ranker:
        """Read what :meth:`save` wrote. Raises OSError or ValueError where it is not there or broken."""
        import bm25s

        return cls(bm25s.BM25.load(str(folder), show_progress=False, allow_pickle=False))


def best(scores: np.ndarray, n: int, above: float) -> Ranks:
    """The ``n`` largest scores above a bar, with their places, largest first; ties: lower place first."""
    places = np.flatnonzero(scores > above)
    if len(places) > n:
        bar = np.partition(scores[places], len(places) - n)[len(places) - n]
        places = places[scores[places] >= bar]
    order = places[np.argsort(-scores[places], kind="stable")][:n]
    return [(int(place), float(scores[place])) for place in order]
