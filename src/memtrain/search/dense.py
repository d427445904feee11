"""Search by meaning: exact inner product between embeddings (extra ``dense``), as Search-R1's flat E5 index does.

Everything is held in memory and compared exactly: good for some millions of passages. For more, run a server with an
approximate index and give its address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memtrain.errors import UserError, first_line
from memtrain.search.bm25 import Ranks, best

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts -> [texts, dim], any scale."""
MANY = 10_000
"""Passages from which embedding them shows its own bar: it takes minutes."""


class DenseRanker:
    """Ranks passages by the cosine between their embedding and the query's."""

    def __init__(self, vectors: np.ndarray, encode: Encode) -> None:
        """``vectors``: [passages, dim], any scale; ``encode`` embeds queries."""
        self._vectors, self._encode = _unit(vectors), encode

    def rank(self, queries: Sequence[str], topk: int) -> list[Ranks]:
        """For each query the ``topk`` passages nearest to it; ties: lower number first."""
        if not queries:
            return []
        return [best(scores, topk, above=-np.inf) for scores in _unit(self._encode(queries)) @ self._vectors.T]

    def save(self, folder: Path) -> None:
        """Write the embeddings into an existing folder."""
        np.save(folder / "vectors.npy", self._vectors, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, model: str) -> DenseRanker:
        """Read what :meth:`save` wrote; ``model`` embeds the queries. Raises OSError or ValueError as ``np.load``."""
        return cls(np.load(folder / "vectors.npy", allow_pickle=False), _Encoder(model).queries)

    @classmethod
    def of(cls, texts: Sequence[str], model: str) -> DenseRanker:
        """Embed texts. Raises :class:`UserError` where the extra is missing or the model cannot be loaded."""
        encoder = _Encoder(model)
        return cls(encoder.passages(texts), encoder.queries)


class _Encoder:
    """A sentence-transformers model, with the prompts it has for queries and for documents."""

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                f"the index 'dense:{model}' needs sentence-transformers ({error}): pip install 'memtrain[dense]', or "
                "use bm25"
            ) from None
        try:
            self._model: Any = SentenceTransformer(model)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the embedding model {model!r} cannot be loaded ({first_line(error)}); give a sentence-transformers "
                "name or folder, or use bm25"
            ) from None

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self._model.encode_query(list(texts), show_progress_bar=False), dtype=np.float32)

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        bar = len(texts) > MANY
        return np.asarray(self._model.encode_document(list(texts), show_progress_bar=bar), dtype=np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
