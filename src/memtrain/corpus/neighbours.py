"""Which passages belong together: BM25 (default, or on the disk) or exact cosine between dense embeddings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from memtrain.corpus.scripts import UNSPACED
from memtrain.errors import UserError
from memtrain.types import Passage


class Neighbours(Protocol):
    """Finds the passages nearest to one of them."""

    def nearest(self, index: int, n: int) -> list[int]:
        """Indices of at most ``n`` passages, nearest first, without ``index`` itself; the same on every call."""
        ...

    def prefetch(self, indices: Sequence[int], n: int) -> None:
        """Announce queries that will come, so that they can be answered as a batch."""
        ...


def make_neighbours(spec: str, passages: Sequence[Passage]) -> Neighbours:
    """Index ``passages`` once. ``spec`` is ``bm25``, ``bm25-disk`` or ``dense:MODEL``.

    Raises :class:`UserError` for another spec, a missing extra, or a model that cannot be loaded.
    """
    kind, _, model = spec.partition(":")
    if spec == "bm25":
        return Bm25Neighbours(passages)
    if spec == "bm25-disk":
        from memtrain.corpus.disk_index import TemporaryNeighbours

        return TemporaryNeighbours(passages)
    if kind == "dense" and model:
        return DenseNeighbours(_embed(model, passages))
    raise UserError(f'key \'documents.neighbours\' is {spec!r}: use "bm25", "bm25-disk" or "dense:MODEL"')


_WORD = re.compile(r"\w+")
_UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")


def words(text: str) -> list[str]:
    """Terms of a text: lower-case words; overlapping pairs of characters where a script has no spaces."""
    terms: list[str] = []
    for word in _WORD.findall(text.lower()):
        rest = word
        for run in _UNSPACED_RUN.findall(word):
            rest = rest.replace(run, " ", 1)
            terms += [run[i : i + 2] for i in range(max(1, len(run) - 1))]
        terms += [part for part in rest.split() if len(part) > 1 or part.isdigit()]
    return terms


class Bm25Neighbours:
    """BM25 (Robertson and Zaragoza 2009, Lucene's variant) by ``bm25s``; the query is the whole passage."""

    COMMON = 0.2
    """Query terms that more than this share of the passages holds are left out: a stop list for any language."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s

        self._terms = [tuple(dict.fromkeys(words(passage.text))) for passage in passages]
        counts = Counter(term for terms in self._terms for term in terms)
        limit = max(10, self.COMMON * len(passages))
        self._common = frozenset(term for term, count in counts.items() if count > limit)
        self._index: Any = None
        if counts:
            self._index = bm25s.BM25(backend="numpy")
            self._index.index([words(passage.text) for passage in passages], show_progress=False)

    def nearest(self, index: int, n: int) -> list[int]:
        """At most ``n`` passages that share a term with passage ``index``, best first; ties: lower index first."""
        query = [term for term in self._terms[index] if term not in self._common] or list(self._terms[index])
        if not query or n < 1:
            return []
        scores = np.array(self._index.get_scores(query))
        scores[index] = 0.0
        return _top(scores, n, floor=0.0)

    def prefetch(self, indices: Sequence[int], n: int) -> None:
        """Nothing to gain: BM25 answers one query at a time."""


class DenseNeighbours:
    """Exact cosine (as published, there with BGE-base): blocks of queries against all passages.

    ``embeddings``: [passages, dim], any scale; normalised here.
    """

    SPARE = 32
    """Extra candidates of the block product, which are then ranked again in float64: the result of a query does not
    depend on the block it was answered in."""
    BLOCK = 256

    def __init__(self, embeddings: np.ndarray) -> None:
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        self._vectors = np.asarray(embeddings / np.maximum(norms, 1e-12), dtype=np.float32)
        self._known: dict[tuple[int, int], list[int]] = {}

    def nearest(self, index: int, n: int) -> list[int]:
        """The ``n`` passages with the largest cosine to passage ``index``, best first; ties: lower index first."""
        self.prefetch((index,), n)
        return list(self._known[index, n])

    def prefetch(self, indices: Sequence[int], n: int) -> None:
        """Answer these queries in blocks; :meth:`nearest` then only looks them up."""
        wanted = [index for index in dict.fromkeys(indices) if (index, n) not in self._known]
        for start in range(0, len(wanted), self.BLOCK):
            block = wanted[start : start + self.BLOCK]
            for index, scores in zip(block, self._vectors[block] @ self._vectors.T, strict=True):
                self._known[index, n] = self._rank(index, scores, n)

    def _rank(self, index: int, scores: np.ndarray, n: int) -> list[int]:
        if n < 1:
            return []
        scores[index] = -np.inf
        candidates = np.sort(np.array(_top(scores, n + self.SPARE, floor=-np.inf), dtype=np.int64))
        query = self._vectors[index].astype(np.float64)
        exact = (self._vectors[candidates].astype(np.float64) * query).sum(axis=1)
        return candidates[np.argsort(-exact, kind="stable")][:n].tolist()


def _top(scores: np.ndarray, n: int, floor: float) -> list[int]:
    """Indices of the ``n`` largest scores above ``floor``, largest first; ties: lower index first."""
    candidates = np.flatnonzero(scores > floor)
    if len(candidates) > n:
        bar = np.partition(scores[candidates], len(candidates) - n)[len(candidates) - n]
        candidates = candidates[scores[candidates] >= bar]
    order = np.argsort(-scores[candidates], kind="stable")
    return candidates[order][:n].tolist()


def _embed(model: str, passages: Sequence[Passage]) -> np.ndarray:
    """[passages, dim] embeddings of a sentence-transformers model (hub name or folder)."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"key 'documents.neighbours' is 'dense:{model}', which needs sentence-transformers ({error}): "
            "pip install 'memtrain[dense]', or use \"bm25\""
        ) from None
    try:
        encoder = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"key 'documents.neighbours': cannot load the embedding model {model!r} ({reason}); "
            'give a sentence-transformers name or folder, or use "bm25"'
        ) from None
    texts = [passage.text for passage in passages]
    # A bar of its own, because one call takes minutes for a large corpus.
    vectors = encoder.encode(texts, batch_size=64, convert_to_numpy=True, show_progress_bar=len(texts) > 10_000)
    return np.asarray(vectors, dtype=np.float32)
