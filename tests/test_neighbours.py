"""Neighbours: BM25 against a calculation by hand, dense against brute force."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from memtrain.corpus.neighbours import Bm25Neighbours, DenseNeighbours, make_neighbours, words
from memtrain.errors import UserError
from memtrain.types import Passage


def passages(*texts: str) -> list[Passage]:
    return [Passage(f"p#{i}", "", text) for i, text in enumerate(texts)]


def test_terms() -> None:
    assert words("The U.S. Navy's 40% a 5") == ["the", "navy", "40", "5"]
    assert words("東京都 Google") == ["東京", "京都", "google"]
    assert words("はx") == ["は"]


def test_bm25_finds_shared_rare_words() -> None:
    index = Bm25Neighbours(
        passages("quark gluon plasma", "gluon quark field", "cats and dogs", "dogs bark", "plasma screen", "")
    )
    assert index.nearest(0, 2) == [1, 4]
    assert index.nearest(3, 5) == [2]
    assert index.nearest(5, 3) == []
    assert index.nearest(0, 0) == []


def test_bm25_scores_by_hand() -> None:
    texts = ["apple pear", "apple apple plum fig", "pear kiwi date lime", "kiwi"]
    index = Bm25Neighbours(passages(*texts))
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)

    def score(query: str, document: list[str]) -> float:
        held = sum(query in other for other in documents)
        idf = math.log(1 + (len(documents) - held + 0.5) / (held + 0.5))
        tf = document.count(query)
        return idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(document) / mean))

    scores = [sum(score(term, document) for term in documents[0]) for document in documents]
    expected = sorted((i for i in range(1, 4) if scores[i] > 0), key=lambda i: -scores[i])
    assert index.nearest(0, 3) == expected


def test_bm25_without_any_word() -> None:
    assert Bm25Neighbours(passages("!", "?")).nearest(0, 1) == []


def test_dense_is_brute_force_cosine_whatever_the_block() -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = unit @ unit.T
    np.fill_diagonal(exact, -np.inf)
    batched, single = DenseNeighbours(vectors), DenseNeighbours(vectors)
    batched.prefetch(range(300), 7)
    for index in range(0, 300, 17):
        expected = np.argsort(-exact[index])[:7].tolist()
        assert batched.nearest(index, 7) == expected == single.nearest(index, 7)


def test_dense_ties_take_the_lower_index() -> None:
    assert DenseNeighbours(np.ones((5, 2), dtype=np.float32)).nearest(2, 3) == [0, 1, 3]


def test_unknown_spec_and_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"documents\.neighbours"):
        make_neighbours("dense:", passages("a"))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"memtrain\[dense\]"):
        make_neighbours("dense:some-model", passages("a"))
