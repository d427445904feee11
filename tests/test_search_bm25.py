"""BM25 against a calculation by hand, index folders, embeddings against brute force."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_servers import PASSAGES

from memtrain.corpus.neighbours import words
from memtrain.errors import UserError
from memtrain.recipe import parse_recipe
from memtrain.search.bm25 import Bm25Ranker, best
from memtrain.search.dense import DenseRanker
from memtrain.search.local import ABOUT, open_index
from memtrain.types import Passage

TERMS = st.lists(st.sampled_from(["arta", "bridge", "river", "mason", "song"]), min_size=1, max_size=8)


def by_hand(texts: list[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25, a text at a time."""
    documents = [Counter(words(text)) for text in texts]
    mean = sum(document.total() for document in documents) / len(documents)
    scores = []
    for document in documents:
        total = 0.0
        for term in words(query):
            holding = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            total += idf * document[term] / (document[term] + k1 * (1 - b + b * document.total() / mean))
        scores.append(total)
    return scores


@given(st.lists(TERMS, min_size=1, max_size=6), TERMS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_ranks_are_those_of_a_calculation_by_hand(texts: list[list[str]], query: list[str], topk: int) -> None:
    plain = [" ".join(text) for text in texts]
    [found] = Bm25Ranker.of(plain).rank([" ".join(query)], topk)
    wanted = by_hand(plain, " ".join(query))
    positive = sorted((score for score in wanted if score > 1e-9), reverse=True)
    assert [score for _, score in found] == pytest.approx(positive[:topk], rel=1e-4)
    assert all(score == pytest.approx(wanted[number], rel=1e-4) for number, score in found)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5))
def test_the_best_are_the_first_of_a_stable_sort(scores: list[int], n: int) -> None:
    wanted = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))[:n]
    assert [place for place, _ in best(np.array(scores, dtype=float), n, above=0.0)] == wanted


def test_titles_count_and_strangers_give_nothing() -> None:
    index = open_index("bm25", PASSAGES)
    [found] = asyncio.run(index.search(["Thyamis"], 3))
    assert [hit.title for hit in found.hits] == ["Thyamis"]
    assert [found.hits for found in asyncio.run(index.search(["xylophone", "", "?!"], 3))] == [(), (), ()]
    assert not any(found.failed for found in asyncio.run(index.search(["xylophone"], 3)))
    assert index.counts()["searches"] == 5
    assert index.name == "bm25 over 4 passages"


def test_any_script() -> None:
    index = open_index("bm25", [Passage("a", "", "東京都は日本の首都"), Passage("b", "", "大阪は商業の都市")])
    [hits] = index.find(["東京"], 1)
    assert "東京都" in hits[0].text


# ---- folders --------------------------------------------------------------------------------------------------------


def test_an_index_is_opened_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "index"
    made = open_index("bm25", PASSAGES, folder)
    for again in (open_index("bm25", [], folder), open_index("bm25", PASSAGES, folder)):
        assert again.find(["masons bridge river"], 3) == made.find(["masons bridge river"], 3)
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pickle")]
    assert [entry.name for entry in folder.parent.iterdir()] == ["index"]


def test_an_index_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    open_index("bm25", PASSAGES, folder)
    with pytest.raises(UserError, match="other passages"):
        open_index("bm25", PASSAGES[:2], folder)
    with pytest.raises(UserError, match="'bm25', not 'dense:model'"):
        open_index("dense:model", [], folder)
    with pytest.raises(UserError, match="nothing to search"):
        open_index("bm25", [], tmp_path / "none")


@pytest.mark.parametrize("damage", ["empty", "version", "cut passages", "pickle", "no arrays"])
def test_a_broken_index_is_one_sentence(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "index"
    open_index("bm25", PASSAGES, folder)
    if damage == "empty":
        (folder / ABOUT).write_text("")
    elif damage == "version":
        (folder / ABOUT).write_text(json.dumps({"format": 0}))
    elif damage == "cut passages":
        lines = (folder / "passages.jsonl").read_text().splitlines(keepends=True)
        (folder / "passages.jsonl").write_text("".join(lines[:-1]))
    elif damage == "pickle":
        np.save(folder / "data.csc.index.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        (folder / "indices.csc.index.npy").unlink()
    with pytest.raises(UserError, match="holds no index that can be read"):
        open_index("bm25", [], folder)


# ---- embeddings -----------------------------------------------------------------------------------------------------


def test_dense_is_brute_force_cosine(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors, asked = rng.normal(size=(40, 6)), rng.normal(size=(3, 6))
    ranker = DenseRanker(vectors, lambda texts: asked[: len(texts)])
    exact = (asked / np.linalg.norm(asked, axis=1, keepdims=True)) @ (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ).T
    for ranks, scores in zip(ranker.rank(["a", "b", "c"], 5), exact, strict=True):
        assert [number for number, _ in ranks] == np.argsort(-scores)[:5].tolist()
        assert [score for _, score in ranks] == pytest.approx(np.sort(scores)[::-1][:5].tolist(), abs=1e-6)
    assert ranker.rank([], 5) == []
    ranker.save(tmp_path)
    assert np.load(tmp_path / "vectors.npy", allow_pickle=False).shape == (40, 6)


def test_the_dense_extra_and_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"memtrain\[dense\]"):
        open_index("dense:some-model", PASSAGES)
    for key, value in (("index", "dense:"), ("index", "bm26"), ("url", "127.0.0.1:8000")):
        with pytest.raises(UserError, match=rf"search\.{key}"):
            parse_recipe({"search": {key: value}}, "test")
