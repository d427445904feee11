"""Questions after reading: what is asked, what the reader is told, and that only a memory written in time helps."""

from __future__ import annotations

import re

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine
from test_ruler import NEEDLE, POOL

from memtrain.corpus.counting import estimate_tokens
from memtrain.corpus.entities import make_finder
from memtrain.corpus.masking import count_occurrences
from memtrain.errors import UserError
from memtrain.evaluation.after_reading import AFTER, LATER, NEEDLES, RECALL, Exam, make_exam
from memtrain.evaluation.long_qa import BM25, CLOSED, FULL, READER
from memtrain.evaluation.ruler.tasks import RulerMaker
from memtrain.evaluation.suites import cost_of_not_knowing, evaluate, summary
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.recipe import EntitySettings, Recipe, parse_recipe
from memtrain.types import TARGET_TOKEN, Passage

FINDER = make_finder("rules", POOL, {})
MAKER = RulerMaker(POOL, estimate_tokens)


def exam_of(tokens: int = 700, number: int = 0, seed: int = 0) -> Exam:
    return make_exam(MAKER, FINDER, EntitySettings(), tokens, number, seed)


@given(st.integers(400, 2500), st.integers(0, 30), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_an_exam_asks_for_what_the_text_holds(tokens: int, number: int, seed: int) -> None:
    exam = exam_of(tokens, number, seed)
    assert exam == exam_of(tokens, number, seed)
    text = exam.sample.text
    needles = [question for question in exam.questions if question.task == NEEDLES]
    recalls = [question for question in exam.questions if question.task == RECALL]
    assert len(needles) == 4
    assert 1 <= len(recalls) <= 4
    told = {key: value for _, key, value in NEEDLE.findall(text)}
    for question in needles:
        (key,) = re.findall(r"for (\S+) in the text", question.text)
        assert question.answers == (told[key],)
        assert text[round(question.depth * len(text)) :].startswith("One of the special magic numbers for")
    for question in recalls:
        (answer,) = question.answers
        assert question.masked is not None
        assert question.masked.replace(TARGET_TOKEN, answer) in {passage.text for passage in POOL}
        assert not count_occurrences(question.masked, answer)
        assert question.text.endswith(question.masked)
        assert 0 <= question.depth <= 1
    assert len({question.text for question in exam.questions}) == len(exam.questions)


def test_a_needle_is_not_given_away_by_a_masked_passage() -> None:
    masked = [question.masked for number in range(20) for question in exam_of(number=number).questions]
    assert not any("magic" in text for text in masked if text)


def test_prompts_of_memory_and_of_text() -> None:
    prompts = Prompts(tiny.tokenizer(), recipe_of().memory)
    needle, *_, recall = exam_of().questions
    assert needle.of_memory(prompts, "m") == prompts.answer(needle.text, "m")
    assert needle.of_text(prompts, "t") == prompts.full_context(needle.text, "t")
    assert recall.masked is not None
    assert recall.of_memory(prompts, NO_MEMORY) == prompts.recall_without_memory(recall.masked)
    assert recall.of_text(prompts, "t") == prompts.recall("t", recall.masked)


def test_passages_without_entities_leave_the_needles() -> None:
    dull = [Passage(f"d{n}#0", f"D{n}", "it is what it is and nothing more. " * 3 + "x" * (n + 1)) for n in range(6)]
    exam = make_exam(RulerMaker(dull, estimate_tokens), make_finder("rules", dull, {}), EntitySettings(), 400, 0, 0)
    assert {question.task for question in exam.questions} == {NEEDLES}
    with pytest.raises(UserError, match=r"after-reading: .* at least \d+"):
        make_exam(MAKER, FINDER, EntitySettings(), 30, 0, 0)


# ---- readings -------------------------------------------------------------------------------------------------------


def recipe_of(chunk_tokens: int = 700) -> Recipe:
    return parse_recipe(
        {
            "memory": {
                "chunk_tokens": chunk_tokens,
                "chunking": "passages",
                "memory_tokens": 400,
                "answer_tokens": 60,
                "style": "compact",
            },
            "eval": {"bootstrap": 100},
        },
        "test",
    )


def attentive(prompt: str, _: int) -> str:
    """Notes the needle it is asked for; told nothing, only the newest one. Answers from what stands before it."""
    found = [match.group() for match in NEEDLE.finditer(prompt)]
    asked = re.findall(r"for (\S+) in the text\?", prompt)
    if "Rewrite the notes" in prompt:
        if LATER in prompt:
            return found[-1] if found else "nothing"
        return (
            " ".join(text for text in dict.fromkeys(found) if any(f" {key} is" in text for key in asked)) or "nothing"
        )
    for _kind, key, value in NEEDLE.findall(prompt):
        if key in asked:
            return f"\\boxed{{{value}}}"
    return "I do not know."


def count(texts: list[str]) -> list[int]:
    return [len(ids) for ids in tiny.tokenizer()(texts, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("context", [100_000, 3_000])
def test_who_asks_later_gets_less(context: int) -> None:
    maker = RulerMaker(POOL, count)
    exams = [make_exam(maker, FINDER, EntitySettings(), 4_000, number, 0) for number in range(3)]
    engine, ticks = ScriptedEngine(tiny.tokenizer(), attentive, context), list[int]()
    records = tiny.run(evaluate(engine, [], exams, recipe_of(), count, lambda: ticks.append(1)))
    found = summary(records, 100, 0)
    assert len(ticks) == 3
    needles = {kind: by_length[4_000]["match_all"]["mean"] for kind, by_length in found[NEEDLES].items()}
    assert needles[READER] == needles[BM25] == 1.0
    assert needles[AFTER] == 0.25  # one of four stood in the last chunk that held any
    assert needles[CLOSED] == 0.0
    assert (FULL in needles) == (context > 4_000)  # where it fits the window
    assert found[NEEDLES][READER][4_000]["match_all"]["n"] == 3  # texts, not questions
    cost = cost_of_not_knowing(records, 100, 0)
    assert cost[NEEDLES][4_000]["match_all"] == {"mean": -0.75, "ci95": [-0.75, -0.75], "n": 3}
    assert found[RECALL][READER][4_000]["match_all"]["mean"] == 0.0
    asked = [record for record in records if record["task"] == NEEDLES and record["kind"] == AFTER]
    assert len({record["memory"] for record in asked}) == 3  # one memory a text for all of its questions
    # The reader that is asked later has never seen a question.
    writes = [prompt for prompt, _, _ in engine.sampled if "Rewrite the notes" in prompt]
    told_later = [prompt for prompt in writes if LATER in prompt]
    assert len(told_later) == sum(record["chunks"] for record in asked) / 4
    assert not any("What is the special magic" in prompt for prompt in told_later)
    assert not any(TARGET_TOKEN in prompt for prompt in told_later)


def test_a_question_too_long_for_the_window_is_one_sentence() -> None:
    pool = [Passage(f"w{n}#0", f"W{n}", " ".join(p.text for p in POOL[10 * n : 10 * n + 10])) for n in range(4)]
    exam = make_exam(RulerMaker(pool, count), make_finder("rules", pool, {}), EntitySettings(), 9_000, 0, 0)
    engine = ScriptedEngine(tiny.tokenizer(), attentive, 1_500)
    with pytest.raises(UserError, match="the model's window is 1500"):
        tiny.run(evaluate(engine, [], [exam], recipe_of(), count))
    assert not engine.sampled
