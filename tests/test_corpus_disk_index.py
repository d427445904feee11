"""BM25 on the disk: the neighbours that BM25 in memory gives, or nearly, and the same ones every time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from memtrain.corpus import disk_index
from memtrain.corpus.disk_index import DiskNeighbours, build_index
from memtrain.corpus.neighbours import Bm25Neighbours, make_neighbours
from memtrain.errors import UserError
from memtrain.types import Passage

pytest.importorskip("tantivy")


def passages(count: int, seed: int = 0, length: int = 25) -> list[Passage]:
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(400)]
    weights = [1 / (rank + 3) for rank in range(400)]
    return [Passage(f"p#{i}", "", " ".join(rng.choices(words, weights, k=length))) for i in range(count)]


def index(made: list[Passage], folder: Path) -> DiskNeighbours:
    build_index((passage.text for passage in made), folder)
    return DiskNeighbours(made, folder)


def test_neighbours_are_those_of_bm25_in_memory(tmp_path: Path) -> None:
    made = passages(2_000)
    disk, memory = index(made, tmp_path / "index"), Bm25Neighbours(made)
    shared = 0
    for pivot in range(0, 2_000, 40):
        found, expected = disk.nearest(pivot, 10), memory.nearest(pivot, 10)
        assert pivot not in found
        assert len(set(found)) == 10
        shared += len(set(found) & set(expected))
        assert expected[0] in found[:3]
    assert shared / 500 > 0.85  # lengths are kept in a byte there


def test_equal_passages_come_in_their_order_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = passages(30) * 120  # each 120 times: more than are asked for at once
    disk = index(made, tmp_path / "index")
    assert disk.nearest(5, 29) == [5 + 30 * place for place in range(1, 30)]
    assert disk.nearest(5 + 30 * 119, 3) == [5, 35, 65]


def test_segments_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Passage(one.id, "", one.text + "".join(f" own{number}x{place}" for place in range(30)))
        for number, one in enumerate(passages(20_000))
    ]
    one = index(made, tmp_path / "one")
    monkeypatch.setattr(disk_index, "HEAP", 15_000_000)
    several = index(made, tmp_path / "several")
    assert several._searcher.num_segments > one._searcher.num_segments
    for pivot in range(0, 20_000, 500):
        assert several.nearest(pivot, 29) == one.nearest(pivot, 29)


def test_nothing_in_common_gives_nothing(tmp_path: Path) -> None:
    made = [Passage(f"{i}#0", "", text) for i, text in enumerate(["alpha beta", "gamma", "", "…"])]
    disk = index(made, tmp_path / "index")
    assert [disk.nearest(number, 3) for number in range(4)] == [[], [], [], []]
    assert disk.nearest(0, 0) == []
    assert index([], tmp_path / "empty")._searcher.num_docs == 0


def test_scripts_without_spaces_are_found_by_pairs(tmp_path: Path) -> None:
    texts = ["東京都に住む人", "京都に行く", "大阪の城", "Ünïcode ПРИВЕТ", "привет"]
    made = [Passage(f"{i}#0", "", text) for i, text in enumerate(texts)]
    disk = index(made, tmp_path / "index")
    assert disk.nearest(0, 2) == [1]
    assert disk.nearest(3, 2) == [4]


def test_a_finished_index_is_kept_and_a_broken_one_made_anew(tmp_path: Path) -> None:
    made = passages(50)
    build_index((passage.text for passage in made), tmp_path / "index")
    build_index(iter(()), tmp_path / "index")  # not looked at
    assert DiskNeighbours(made, tmp_path / "index").nearest(0, 5)

    def broken():  # type: ignore[no-untyped-def]
        yield "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(broken(), tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    told: list[int] = []
    build_index((f"text {number}" for number in range(2_500)), tmp_path / "other", told.append)
    assert told == [1_000, 2_000]


def test_the_recipe_may_ask_for_it(tmp_path: Path) -> None:
    made = passages(200)
    neighbours = make_neighbours("bm25-disk", made)
    assert neighbours.nearest(0, 5) == index(made, tmp_path / "index").nearest(0, 5)
    with pytest.raises(UserError, match='"bm25-disk"'):
        make_neighbours("bm26", made)
