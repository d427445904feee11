"""Questions as training data: the split, texts made on demand, groups dealt into mini-batches, unpaired probes."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine
from tiny_questions import NAMES, write_questions

from memtrain.errors import UserError
from memtrain.evaluation.statistics import sign_flip_p
from memtrain.memory.prompts import Prompts
from memtrain.qa import split as split_file
from memtrain.qa.haystack import HaystackMaker
from memtrain.qa.questions import Question, read_questions
from memtrain.qa.split import draw, load_split
from memtrain.rl.experience import collect
from memtrain.rl.trainer import mini_batches
from memtrain.settings import QaSettings
from memtrain.task_training import task_recipe
from memtrain.tasks.long_qa import QuestionDocuments, document_of
from memtrain.types import Passage, QuestionDocument, Row, TrainingDocument

# ---- the split ------------------------------------------------------------------------------------------------------


def titles(questions: Sequence[Question]) -> set[str]:
    return {passage.title for question in questions for passage in question.gold}


def test_no_gold_paragraph_is_on_both_sides(tmp_path: Path) -> None:
    found = load_split(QaSettings(questions=str(write_questions(tmp_path / "q.json")), held_out=0.4))
    assert titles(found.train) | titles(found.evaluation) == set(NAMES)
    assert not titles(found.train) & titles(found.evaluation)
    assert len(found.train) + len(found.evaluation) == 24
    assert {passage.title for passage in found.train_pool()} == titles(found.train)
    assert {passage.title for passage in found.evaluation_pool()} == titles(found.evaluation)


@given(st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=25), st.floats(0.1, 0.9))
@settings(max_examples=60, deadline=None)
def test_questions_that_share_a_paragraph_stay_together(golds: list[set[int]], share: float) -> None:
    questions = [
        Question(str(i), f"q{i}", ("a",), tuple(Passage(str(g), f"page {g}", f"text {g}") for g in sorted(gold)))
        for i, gold in enumerate(golds)
    ]
    held = split_file._held_out(questions, share)
    for one in questions:
        for other in questions:
            if titles([one]) & titles([other]):
                assert held[one.id] == held[other.id]


def test_the_share_is_held_out() -> None:
    questions = [Question(str(i), f"q{i}", ("a",), (Passage(str(i), f"page {i}", "x"),)) for i in range(4000)]
    held = split_file._held_out(questions, 0.3)
    assert sum(held.values()) / 4000 == pytest.approx(0.3, abs=0.03)


def test_a_second_file_is_the_evaluation(tmp_path: Path) -> None:
    """What both files hold is kept out of training, and said."""
    whole = write_questions(tmp_path / "q.json")
    data = json.loads(whole.read_text())
    part = tmp_path / "eval.json"
    part.write_text(json.dumps({**data, "data": data["data"][:3]}))
    found = load_split(QaSettings(questions=str(whole), eval_questions=str(part)))
    assert titles(found.evaluation) == set(NAMES[:3])
    assert titles(found.train) == set(NAMES[3:])
    assert found.left_out["gold paragraphs or question in the evaluation too"] == 6


def test_missing_answers_and_paragraphs_are_counted(tmp_path: Path) -> None:
    data = json.loads(write_questions(tmp_path / "q.json").read_text())
    flat = [
        {"id": asked["id"], "question": asked["question"], "answers": asked["answers"], "context": p["context"]}
        for article in data["data"]
        for p in article["paragraphs"]
        for asked in p["qas"]
    ]
    flat[0]["answers"], flat[1]["context"] = [], ""
    file = tmp_path / "flat.json"
    file.write_text(json.dumps(flat))
    found = load_split(QaSettings(questions=str(file), held_out=0.4))
    assert found.left_out == {"no accepted answer": 1, "gold paragraphs missing": 1}
    assert len(found.train) + len(found.evaluation) == 22
    without_gold = load_split(QaSettings(questions=str(file), held_out=0.4), need_gold=False)
    assert len(without_gold.train) + len(without_gold.evaluation) == 23


def test_draws_are_seeded(tmp_path: Path) -> None:
    questions = read_questions(write_questions(tmp_path / "q.json")).questions
    assert draw(questions, 5, 1) == draw(questions, 5, 1) != draw(questions, 5, 2)
    assert len(draw(questions, 99, 1)) == 24


def test_questions_of_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name, the configuration and the split arrive; what comes back is read like a file."""
    asked: list[Any] = []
    library = types.ModuleType("datasets")

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        asked.append((name, config, split, streaming))
        context = {"title": ["Ulm"], "sentences": [["Ulm is a city."]]}
        facts = {"title": ["Ulm"], "sent_id": [0]}
        return [{"id": "1", "question": "What?", "answer": "city", "context": context, "supporting_facts": facts}]

    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    [question] = read_questions(Path("hf:hotpotqa/hotpot_qa:distractor:validation")).questions
    assert (question.answers, question.gold[0].title) == (("city",), "Ulm")
    read_questions(Path("hf:some/set"))
    assert asked == [("hotpotqa/hotpot_qa", "distractor", "validation", True), ("some/set", None, "train", True)]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"memtrain\[hub\]"):
        read_questions(Path("hf:some/set"))


# ---- documents ------------------------------------------------------------------------------------------------------


def test_documents_are_made_when_asked_for(tmp_path: Path) -> None:
    found = load_split(QaSettings(questions=str(write_questions(tmp_path / "q.json")), held_out=0.4))
    maker = HaystackMaker(found.train_pool(), lambda texts: [len(text.split()) for text in texts])
    documents = QuestionDocuments(found.train, maker, 60, seed=3)
    assert len(documents) == len(found.train)
    document = documents[2]
    assert document == documents[2] != QuestionDocuments(found.train, maker, 60, seed=4)[2]
    assert document.question == found.train[2].text
    assert (document.answer, *document.aliases) == found.train[2].answers
    assert found.train[2].gold[0].text in document.text


def test_ids_hold_no_slash() -> None:
    """Group ids are parted by slashes."""
    question = Question("a/b", "q", ("x",), (Passage("1", "T", "some text"),))
    maker = HaystackMaker([], lambda texts: [len(text.split()) for text in texts])
    assert "/" not in document_of(maker.make(question, 5, 0)).id


# ---- mini-batches ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 6))
def test_documents_are_dealt_whole(sizes: list[int], n: int) -> None:
    rows = [
        Row((1,), (2,), (0.0,), 1.0, group_id=f"d{document}" if place % 2 else f"d{document}/{place}/0")
        for document, size in enumerate(sizes)
        for place in range(size)
    ]
    dealt = mini_batches(rows, n)
    assert [row for part in dealt for row in part] == rows
    assert len(dealt) == min(n, len(sizes))
    owners = [{row.group_id.split("/")[0] for row in part} for part in dealt]
    assert sum(map(len, owners)) == len(sizes)
    assert max(map(len, owners)) - min(map(len, owners)) <= 1


def test_nothing_to_deal_is_one_empty_batch() -> None:
    assert mini_batches([], 4) == [[]]


# ---- episodes -------------------------------------------------------------------------------------------------------


def masked(number: int) -> TrainingDocument:
    text = "Document 1:\nAnna met Boris in Ulm.\n\nDocument 2:\n[MASK] knew Clara and Dora."
    from memtrain.types import Mention

    names = ("Anna", "Boris", "Ulm", "Clara", "Dora")
    return TrainingDocument(
        f"d{number}", text, "Fyodor", "name", (), "p", ("p",), 1, 1, 30, tuple(Mention(name) for name in names)
    )


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("reward", ["exact", "likelihood"])
def test_probes_are_shared_or_drawn_for_each(paired: bool, reward: str) -> None:
    recipe = tiny_run.small(
        tasks={"paired_probes": paired, "probes": 2, "recall_reward": reward, "reconstruction_reward": reward},
        train={"group_size": 6},
    )
    engine = ScriptedEngine(tiny.tokenizer(), lambda prompt, number: f"\\boxed{{Anna}} {number}")
    prompts = Prompts(engine.tokenizer, recipe.memory)
    found = tiny.run(collect(engine, prompts, [masked(1)], recipe, 1)).episodes[0]
    assert [len(asked) for asked in found.probes] == [2] * 6
    assert [len(values) for values in found.recall] == [2] * 6
    assert (len({tuple(asked) for asked in found.probes}) == 1) == paired


def test_a_question_is_read_answered_and_compared() -> None:
    """Exact match against every accepted answer; the question, not the reconstruction's, stands in every prompt."""
    recipe = task_recipe(tiny_run.small(qa={"reward": "exact", "train": {"group_size": 4}}))
    document = QuestionDocument("q@30", "Document 1:\nUlm is a city.", "What is Ulm?", "town", ("city",))

    turns = iter(range(100))

    def reply(prompt: str, number: int) -> str:
        assert "What is Ulm?" in prompt
        return ("\\boxed{City}" if next(turns) % 2 else "\\boxed{village}") if "boxed" in prompt else "Ulm: city"

    engine = ScriptedEngine(tiny.tokenizer(), reply)
    experience = tiny.run(collect(engine, Prompts(engine.tokenizer, recipe.memory), [document], recipe, 1))
    [found] = experience.episodes
    assert sorted(found.rewards) == [0.0, 0.0, 1.0, 1.0]
    assert {row.kind for row in experience.rows} == {"write", "answer"}
    assert not found.groups[1:]  # no recall
    assert experience.metrics["probes"] == 0


# ---- the paired test ------------------------------------------------------------------------------------------------


def test_sign_flips_agree_with_all_of_them() -> None:
    """Against the exact distribution: every one of the 2^n signs."""
    gaps = [0.5, -0.25, 1.0, 0.75, 0.1, 0.0, -0.4, 0.9]
    before = [{"document": str(i), "m": 0.0} for i in range(len(gaps))]
    after = [{"document": str(i), "m": gap} for i, gap in enumerate(gaps)]
    observed, hits = abs(sum(gaps)), 0
    for signs in range(2 ** len(gaps)):
        total = sum(gap if signs >> i & 1 else -gap for i, gap in enumerate(gaps))
        hits += abs(total) >= observed - 1e-9
    assert sign_flip_p(before, after, "m", rounds=40_000) == pytest.approx(hits / 2 ** len(gaps), abs=0.01)


def test_no_difference_is_p_of_one() -> None:
    same = [{"document": str(i), "m": float(i)} for i in range(5)]
    assert sign_flip_p(same, same, "m", rounds=100) == 1.0
    assert sign_flip_p(same[:1], same[:1], "m") is None
