"""Builds of training documents: reproducible, reused, and nothing half-finished on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from synthetic_corpus import check, recipe, write_corpus

from memtrain.corpus import documents, store
from memtrain.corpus.documents import build, load, open_documents, redraw
from memtrain.errors import UserError


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "cache"))
    return write_corpus(tmp_path / "corpus.jsonl")


def test_documents_of_a_build_keep_their_promises(corpus: Path, tmp_path: Path) -> None:
    settings = recipe(corpus)
    report = build(settings, tmp_path / "out")
    splits, _, _ = documents._prepare(settings, documents.ReadReport(), lambda *_: None)
    passages = {passage.id: passage for side in splits.values() for passage in side}
    titles = {}
    for split, count in (("train", 40), ("held_out", 5)):
        drawn = load(tmp_path / "out", split)
        assert [document.id for document in drawn] == [f"{split}-{i}" for i in range(count)]
        for document in drawn:
            check(document, passages, size=6)
        titles[split] = {passages[name].title for document in drawn for name in document.passage_ids}
    assert all(titles.values())
    assert not titles["train"] & titles["held_out"]
    answers = {document.answer for document in load(tmp_path / "out", "train")}
    assert {"U.S.", "$5 million", "40%"} <= answers
    assert report.splits["train"].documents == 40
    assert sum(report.splits["train"].masks.values()) == 40
    assert any("documents/s" in line for line in report.lines())


def test_same_seed_same_document_alone_in_a_batch_and_in_another_process(corpus: Path, tmp_path: Path) -> None:
    settings = recipe(corpus)
    build(settings, tmp_path / "out")
    drawn = load(tmp_path / "out", "train")
    assert redraw(settings, "train", 17) == drawn[17]
    script = (
        "import sys; from memtrain.recipe import Recipe; from memtrain.corpus.documents import redraw;"
        "print(repr(redraw(Recipe.model_validate_json(sys.argv[1]), 'train', 17)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, settings.model_dump_json()], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == repr(drawn[17])
    assert redraw(settings.model_copy(update={"seed": 1}), "train", 17) != drawn[17]


def test_finished_build_is_used_again_and_another_recipe_is_not(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = build(recipe(corpus), out)
    stamp = (out / "train.parquet").stat().st_mtime_ns
    second = build(recipe(corpus), out)
    assert (first.reused, second.reused) == (False, True)
    assert (out / "train.parquet").stat().st_mtime_ns == stamp
    assert second.splits["train"].masks == first.splits["train"].masks
    assert second.lines()[1:] == first.lines()[1:]
    assert not build(recipe(corpus, seed=1), out).reused
    corpus.write_text(corpus.read_text() + json.dumps({"title": "New", "text": "Then came Alan Turing."}) + "\n")
    assert not build(recipe(corpus, seed=1), out).reused
    (out / "held_out.parquet").write_bytes(b"cut")
    assert not build(recipe(corpus, seed=1), out).reused


def test_touched_corpus_with_the_same_content_is_the_same(corpus: Path, tmp_path: Path) -> None:
    build(recipe(corpus), tmp_path / "out")
    corpus.write_text(corpus.read_text())
    assert build(recipe(corpus), tmp_path / "out").reused


@pytest.mark.parametrize("after", [1, 2])
def test_stopped_build_leaves_nothing_that_looks_finished(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "out"
    calls = []

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("documents") and done == total:
            calls.append(what)
            if len(calls) == after:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(recipe(corpus), out, progress=progress)
    assert list(out.iterdir()) == []
    with pytest.raises(UserError, match="no finished build"):
        load(out, "train")
    assert len(build(recipe(corpus), out).splits) == 2


def test_stopped_rebuild_keeps_the_finished_one(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(recipe(corpus), out)
    before = load(out, "train")

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("documents"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(recipe(corpus, seed=5), out, progress=progress)
    assert load(out, "train") == before


def test_full_disk_is_one_sentence(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: store.DocumentWriter) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.DocumentWriter, "_flush", full)
    with pytest.raises(UserError, match="is full"):
        build(recipe(corpus), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_leftovers_of_a_killed_build_go_away(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".train.parquet.1.tmp").write_bytes(b"half")
    build(recipe(corpus), out)
    assert sorted(path.name for path in out.iterdir()) == ["held_out.parquet", "manifest.json", "train.parquet"]


def test_corpus_smaller_than_a_document_names_both_numbers_and_the_keys(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        build(recipe(corpus, documents={"related": 29, "random": 120}), tmp_path / "out")
    for part in ("150", "documents.related 29", "documents.random 120", "passages"):
        assert part in str(error.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_one_page_cannot_be_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "cache"))
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"title": "Only", "text": "Ada Lovelace met Charles Babbage."}) + "\n")
    with pytest.raises(UserError, match=r"corpus\.held_out"):
        build(recipe(path), tmp_path / "out")


def test_passages_that_spell_a_mask_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "cache"))
    path = tmp_path / "c.jsonl"
    rows = [{"title": f"T{i}", "text": f"Ada Lovelace {i}: BERT hides words as [MASK] here."} for i in range(9)]
    rows += [{"title": f"S{i}", "text": f"then Ada Lovelace met Konrad Zuse {i} times."} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert build(recipe(path), tmp_path / "out").unusable == 9


def test_tokens_are_those_of_the_parts(corpus: Path, tmp_path: Path) -> None:
    build(recipe(corpus), tmp_path / "out", count_tokens=lambda texts: [len(text.split()) for text in texts])
    for document in load(tmp_path / "out", "train"):
        assert document.n_tokens == len(document.text.split())


def test_lazy_documents_are_the_loaded_ones(corpus: Path, tmp_path: Path) -> None:
    build(recipe(corpus, documents={"train": 2 * store.ROWS_PER_GROUP + 3}), tmp_path / "out")
    lazy, loaded = open_documents(tmp_path / "out", "train"), load(tmp_path / "out", "train")
    assert len(lazy) == len(loaded) == 2 * store.ROWS_PER_GROUP + 3
    assert [lazy[i] for i in (0, 16, 34, -1, 15)] == [loaded[i] for i in (0, 16, 34, -1, 15)]
    assert lazy[14:18] == loaded[14:18]
    with pytest.raises(IndexError):
        lazy[len(lazy)]


def test_damaged_and_foreign_files_are_one_sentence(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(recipe(corpus), out)
    size = (out / "train.parquet").stat().st_size
    (out / "train.parquet").write_bytes(b"\0" * size)
    with pytest.raises(UserError, match="damaged"):
        load(out, "train")
    with pytest.raises(UserError, match="no finished build"):
        load(tmp_path / "nowhere", "train")


def test_parquet_is_plain(corpus: Path, tmp_path: Path) -> None:
    build(recipe(corpus), tmp_path / "out")
    row = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()[0]
    assert set(row["mentions"][0]) == {"text", "kind"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["corpus"]["sha256"]) == 64
    assert manifest["report"]["splits"]["train"]["documents"] == 40


def test_corpus_package_needs_no_torch() -> None:
    script = (
        "import sys, memtrain.corpus.documents, memtrain.corpus.spacy_finder;"
        "print([name for name in ('torch', 'transformers', 'spacy', 'sentence_transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
