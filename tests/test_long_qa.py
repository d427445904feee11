"""Long-text QA: metrics against torchmetrics, the reader and its controls, the command from file to table."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine
from test_qa import ASKED, HOTPOT, NQ_OPEN, POOL, put

from memtrain.cli import main
from memtrain.evaluation.long_qa import BM25, CLOSED, FULL, READER, Asked, evaluate, summary
from memtrain.evaluation.qa_metrics import contains, scores, squad_exact_match
from memtrain.qa.haystack import HaystackMaker
from memtrain.recipe import Recipe, parse_recipe
from memtrain.tasks.verifier import word_f1

WORDS = st.lists(st.sampled_from(["a", "The", "bridge", "of", "Arta,", "U.S.", "1602"]), min_size=1, max_size=5)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_squad_metrics_are_torchmetrics(said: list[str], golds: list[list[str]]) -> None:
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    reply, spellings = " ".join(said), [" ".join(gold) for gold in golds]
    if not all(any(w.lower().strip(string.punctuation) not in ("a", "the") for w in text) for text in (said, *golds)):
        return  # nothing but articles: ours keeps them, so that they can be right
    wanted = squad(
        [{"prediction_text": reply, "id": "1"}], [{"answers": {"text": spellings, "answer_start": [0]}, "id": "1"}]
    )
    assert squad_exact_match(reply, spellings) == pytest.approx(float(wanted["exact_match"]) / 100)
    assert max(word_f1(reply, gold) for gold in spellings) == pytest.approx(float(wanted["f1"]) / 100, abs=1e-6)


def test_containment_goes_one_way_and_by_words() -> None:
    assert contains("the old bridge of Arta", ["Bridge of Arta"]) == 1.0
    assert contains("Arta", ["Bridge of Arta"]) == 0.0
    assert contains("Artaxerxes", ["Arta"]) == 0.0


def test_a_reply_without_a_box_is_wrong_everywhere() -> None:
    assert scores("Arachthos", ["Arachthos"]) == {"exact": 0, "em": 0, "f1": 0, "contains": 0, "answered": 0}
    right = scores("It is \\boxed{the Arachthos}.", ["Arachthos"])
    assert right == {"exact": 0, "em": 1, "f1": 1, "contains": 1, "answered": 1}


# ---- reader and controls --------------------------------------------------------------------------------------------


def recipe_of(chunk_tokens: int = 120) -> Recipe:
    return parse_recipe(
        {
            "memory": {
                "chunk_tokens": chunk_tokens,
                "chunking": "passages",
                "memory_tokens": 40,
                "answer_tokens": 24,
                "max_chunks": 2,
            },
            "eval": {"bootstrap": 100},
        },
        "test",
    )


def knows(prompt: str, _: int) -> str:
    """Notes the river where it is seen, and answers with it where it is known."""
    seen = "arachthos" in prompt.lower()
    if "boxed" in prompt:
        return "\\boxed{Arachthos}" if seen else "\\boxed{no idea}"
    return "The river is the Arachthos." if seen else "Nothing yet."


@pytest.mark.parametrize("context", [100_000, 1000])
def test_the_reader_carries_what_it_read(context: int) -> None:
    tokenizer = tiny.tokenizer()

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    maker = HaystackMaker(POOL, count)
    asked = [Asked(length, maker.make(ASKED, length, 3)) for length in (600, 2400)]
    engine, ticks = ScriptedEngine(tokenizer, knows, context), list[int]()
    records = tiny.run(evaluate(engine, asked, recipe_of(), count, lambda: ticks.append(1)))
    found = summary(records, 100, 0)
    assert len(ticks) == 2
    assert [found[READER][length]["exact"]["mean"] for length in (600, 2400)] == [1.0, 1.0]
    assert found[CLOSED][0]["exact"] == {"mean": 0.0, "ci95": [None, None], "n": 1}
    assert found[CLOSED][0]["answered"]["mean"] == 1.0
    assert set(found[FULL]) == ({600, 2400} if context > 1000 else {600})  # where it fits the window
    assert set(found[BM25]) == {600, 2400}
    chunks = {record["length"]: record["chunks"] for record in records if record["kind"] == READER}
    assert chunks[2400] > 2  # recipe.memory.max_chunks is for training
    assert all("Arachthos" in record["memory"] for record in records if record["kind"] == READER)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(
        f'[model]\nname = "{tiny.model_folder("llama")}"\ndtype = "float32"\ndevice = "cpu"\n'
        '[memory]\nchunk_tokens = 96\nmemory_tokens = 12\nanswer_tokens = 8\nstyle = "compact"\n'
        "[eval]\nbootstrap = 100\n"
    )
    return file


def test_from_a_question_file_to_a_table(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    others = [{"title": p.title, "text": p.text} for p in POOL]
    questions = put(tmp_path, [HOTPOT, {**HOTPOT, "_id": "h2", "question": "Which other?"}, NQ_OPEN], "q.json")
    pool, out = put(tmp_path, others, "pool.json"), tmp_path / "out"
    command = ["qa", str(recipe), str(questions), "--passages", str(pool), "--lengths", "300", "600"]
    assert main([*command, "--number", "9", "--out", str(out)]) == 0
    shown = capfd.readouterr()
    assert "closed book" in shown.out
    result = json.loads((out / "qa.json").read_text())
    assert result["n"] == 2  # the third has no gold paragraphs
    assert set(result["summary"]) >= {"reader", "bm25", "closed book"}
    assert set(result["summary"]["reader"]) == {"300", "600"}
    assert result["summary"]["reader"]["300"]["exact"]["n"] == 2
    assert (out / "qa.md").read_text().count("\n| reader |") == 2
    assert (out / "qa.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("content", "extra", "said"),
    [
        ([NQ_OPEN], [], "no gold paragraphs"),
        ([HOTPOT], ["--lengths", "5"], "lengths of at least"),
        ([HOTPOT], ["--lengths", "900000"], "more distractors"),
        ([{"question": "x"}], [], "no accepted answer"),
        ([HOTPOT], ["--number", "0"], "at least one question"),
    ],
)
def test_a_mistake_is_one_sentence(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], content: list[object], extra: list[str], said: str
) -> None:
    questions = put(tmp_path, content, "q.json")
    assert main(["qa", str(recipe), str(questions), "--out", str(tmp_path / "out"), *extra]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert said in error[-1]
    assert not (tmp_path / "out").exists()
