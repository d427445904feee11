"""Questions made of the text's own sentences: what is asked, what the notes keep, which rows train it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from test_priming import CHUNKS, DOCUMENT, NAMES, PROMPTS, memory

from memtrain.corpus.masking import count_occurrences
from memtrain.memory.prompts import NO_MEMORY
from memtrain.recipe import PrimingSettings
from memtrain.tasks.cloze import LONGEST, SHORTEST, draw_clozes, memories
from memtrain.tasks.priming import ROOM, pairs
from memtrain.types import MASK_TOKEN, TARGET_TOKEN


def drawn(n: int, tokens: int = 200, seed: int = 0):
    priming = PrimingSettings(cloze_questions=n)
    return draw_clozes(DOCUMENT, CHUNKS, PROMPTS, memory(tokens), priming, random.Random(seed), ROOM)


@given(st.integers(0, 50))
def test_a_question_is_a_sentence_with_its_answer_hidden(seed: int) -> None:
    found = drawn(3, seed=seed)
    assert len(found) == 2  # the others are too short to ask about
    assert len({cloze.chunk for cloze in found}) == 2
    for cloze in found:
        assert cloze.answer in NAMES
        sentence = cloze.question.removeprefix(f"What is {TARGET_TOKEN}? ").replace(TARGET_TOKEN, cloze.answer)
        assert sentence in " ".join(CHUNKS[cloze.chunk].split())
        assert SHORTEST <= len(sentence.split()) <= LONGEST
        assert TARGET_TOKEN in cloze.question
        assert not count_occurrences(cloze.question, cloze.answer)
        assert MASK_TOKEN not in cloze.question


@given(st.integers(0, 50), st.integers(90, 300))
def test_notes_keep_the_sentence_from_where_it_stands(seed: int, tokens: int) -> None:
    for cloze in drawn(2, tokens, seed):
        sentence = cloze.question.removeprefix(f"What is {TARGET_TOKEN}? ").replace(TARGET_TOKEN, cloze.answer)
        assert len(cloze.notes) == len(CHUNKS)
        for step, text in enumerate(cloze.notes):
            assert text.startswith(sentence) == (step >= cloze.chunk)
            assert len(PROMPTS.memory_ids(text)) <= tokens * (1 - ROOM) + 1  # one for the line break between


def test_a_memory_too_small_for_the_sentences_asks_nothing() -> None:
    assert drawn(3, tokens=10) == []
    assert drawn(0) == []


def test_rows_write_and_answer_with_the_question() -> None:
    priming = PrimingSettings(cloze_questions=2, recall_pairs=0)
    plain = pairs(DOCUMENT, CHUNKS, PROMPTS, memory(200), PrimingSettings(recall_pairs=0), random.Random(0))
    rows = pairs(DOCUMENT, CHUNKS, PROMPTS, memory(200), priming, random.Random(0))
    assert rows[: len(plain)] == plain
    answers = [row for row in rows if row.metadata["pair"] == "cloze answer"]
    writes = [row for row in rows if row.metadata["pair"] == "cloze write"]
    assert len(answers) == 2
    assert len(writes) <= 2 * len(CHUNKS)
    decode = PROMPTS.tokenizer.decode
    for row in answers:
        prompt, said = decode(list(row.prompt_ids)), decode(list(row.completion_ids))
        assert "What is [TARGET]?" in prompt
        assert said.split("{", 1)[1].split("}")[0] in prompt.split("Notes:")[1]  # the memory holds the answer
    assert all("What is [TARGET]?" in decode(list(row.prompt_ids)) for row in writes)


def test_memories_begin_empty() -> None:
    [cloze] = drawn(1)
    assert memories(cloze)[0] == NO_MEMORY
    assert len(memories(cloze)) == len(CHUNKS) + 1
