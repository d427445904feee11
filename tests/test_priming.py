"""Notes made from the text, and the supervised pairs made of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import make_tokenizer

from memtrain.corpus.masking import count_occurrences
from memtrain.memory.prompts import NO_MEMORY, QUESTION, Prompts
from memtrain.recipe import MemorySettings, PrimingSettings
from memtrain.tasks.notes import ENTITIES, FACTS, Fact, Notes, NoteStyle, extend, find_facts, render
from memtrain.tasks.priming import make_notes, pairs
from memtrain.types import MASK_TOKEN, Mention, TrainingDocument

CHUNKS = (
    "Document 1:\nPierre Proudhon was the first self-proclaimed anarchist, in 1840. He printed books in Besançon.\n\n",
    "Document 2:\nIn 1876 a Russian rebel [MASK] died in Bern. Karl Marx had quarrelled with [MASK] over a state.\n\n",
    "Document 3:\nEmma Goldman spoke in Paterson. She read Peter Kropotkin, and many heirs read Emma Goldman.\n\n",
)
NAMES = (
    *("Pierre Proudhon", "anarchist", "Besançon", "Bern", "Karl Marx", "state"),
    *("Emma Goldman", "Paterson", "Peter Kropotkin", "1840"),
)
DOCUMENT = TrainingDocument(
    "d", "".join(CHUNKS), "Bakunin", "name", (), "p", ("p",), 1, 2, 80, tuple(Mention(name) for name in NAMES)
)
PROMPTS = Prompts(make_tokenizer(), MemorySettings(style="compact"))
FIXED = NoteStyle(jitter=0.0, length_power=0.0)


def words(text: str) -> int:
    return len(text.split())


def memory(tokens: int) -> MemorySettings:
    return MemorySettings(style="compact", memory_tokens=tokens)


def test_facts_by_hand() -> None:
    facts = find_facts(CHUNKS[0], 0, NAMES, random.Random(0), FIXED)
    assert {fact.text: [word for _, word in fact.words] for fact in facts} == {
        "Pierre Proudhon": ["self-proclaimed"],
        "anarchist": ["self-proclaimed"],
        "1840": ["self-proclaimed"],
        "Besançon": ["books"],
    }
    assert [fact.text for fact in facts][-1] == "anarchist"  # no name, no figure: first to go
    assert render(facts, FIXED) == "Pierre Proudhon self-proclaimed anarchist, 1840; books Besançon"


def test_the_hidden_entity_comes_first_with_more_words() -> None:
    facts = find_facts(CHUNKS[1], 1, NAMES, random.Random(0), FIXED)
    assert facts[0].text == MASK_TOKEN
    assert [word for _, word in facts[0].words] == ["Russian", "rebel", "died", "1876"]
    assert [fact.text for fact in facts].count(MASK_TOKEN) == 1
    notes = extend(Notes(), facts, 5, words, FIXED)
    assert notes.text == "1876 Russian rebel [MASK] died"


def test_bare_list() -> None:
    facts = [fact for i, chunk in enumerate(CHUNKS) for fact in find_facts(chunk, i, NAMES, random.Random(0), ENTITIES)]
    assert render(facts, ENTITIES) == (
        "Pierre Proudhon; anarchist; 1840; Besançon; [MASK]; Bern; Karl Marx; state; Emma Goldman; Paterson; "
        "Peter Kropotkin; Emma Goldman"
    ).removesuffix("; Emma Goldman")


def test_longest_entity_wins_where_two_overlap() -> None:
    facts = find_facts("He saw New York City.", 0, ["New York", "New York City"], random.Random(0), FIXED)
    assert [fact.text for fact in facts] == ["New York City"]


def test_headings_and_sentence_ends_inside_entities() -> None:
    facts = find_facts(
        "Document 7:\nThe U.S. Navy sailed. Then 7 ships came.", 0, ["U.S. Navy", "7"], random.Random(0), FIXED
    )
    assert render(facts, FIXED) == "U.S. Navy sailed; 7 ships"


def fact(chunk: int, text: str, priority: float = 1.0, n_words: int = 2) -> Fact:
    tying = tuple((place, f"{text.lower()}{place}") for place in range(1, n_words + 1))
    return Fact(chunk=chunk, sentence=ord(text[0]), place=0, text=text, words=tying, priority=priority)


def test_chunks_keep_fair_shares() -> None:
    notes = Notes()
    for chunk, letters in enumerate(["ABCD", "EFGH", "IJKL"]):
        new = [fact(chunk, letter, 1 - place / 10) for place, letter in enumerate(letters)]
        notes = extend(notes, new, 12, words, FIXED)  # room for four facts of three words
        assert words(notes.text) <= 12
    # Every chunk keeps its best; the fourth place goes to the second of one of them.
    assert {"A", "E", "I"} <= notes.entities
    assert len(notes.facts) == 4
    assert [f.chunk for f in notes.facts] == sorted(f.chunk for f in notes.facts)


def test_new_share_favours_the_newest() -> None:
    old = extend(Notes(), [fact(0, letter) for letter in "ABCD"], 12, words, FIXED)
    new = [fact(1, letter) for letter in "EFGH"]
    even = extend(old, new, 12, words, FIXED).facts
    much = extend(old, new, 12, words, replace(FIXED, new_share=3.0)).facts
    assert [f.chunk for f in even].count(1) == 2
    assert [f.chunk for f in much].count(1) == 3


def test_old_facts_are_shortened_where_asked() -> None:
    style = replace(FIXED, words=2, old_words=0)
    notes = extend(Notes(), [fact(0, "A")], 50, words, style)
    assert notes.text == "A a1 a2"
    assert extend(notes, [fact(1, "B")], 50, words, style).text == "A; B b1 b2"


def test_an_entity_is_noted_once() -> None:
    notes = extend(Notes(), [fact(0, "A")], 50, words, FIXED)
    assert extend(notes, [fact(1, "A"), fact(1, "B")], 50, words, FIXED).text == "A a1 a2; B b1 b2"


@given(
    tokens=st.integers(8, 120),
    seed=st.integers(0, 1000),
    n_words=st.integers(0, 3),
    old_words=st.one_of(st.none(), st.integers(0, 2)),
    target=st.sampled_from(["facts", "entities"]),
)
@settings(max_examples=60, deadline=None)
def test_notes_fit_and_hold_only_what_can_be_known(
    tokens: int, seed: int, n_words: int, old_words: int | None, target: Any
) -> None:
    style = ENTITIES if target == "entities" else NoteStyle(words=n_words, old_words=old_words)
    priming = PrimingSettings(target=target)

    def make() -> list[Notes]:
        return make_notes(DOCUMENT, CHUNKS, PROMPTS, memory(tokens), priming, random.Random(seed), style)

    steps = make()
    assert steps == make()
    known: frozenset[str] = frozenset()
    for chunk, notes in zip(CHUNKS, steps, strict=True):
        assert len(PROMPTS.memory_ids(notes.text)) <= max(1, int(tokens * 0.9)) or not notes.text
        for entity in notes.entities:
            assert count_occurrences(notes.text, entity), (entity, notes.text)
            assert entity in known or count_occurrences(chunk, entity)
        assert "Bakunin" not in notes.text
        known = notes.entities
    roomy = make_notes(DOCUMENT, CHUNKS, PROMPTS, memory(1000), priming, random.Random(seed), style)
    assert roomy[-1].entities == {*NAMES, MASK_TOKEN}


def test_pairs_show_the_notes_before_and_ask_only_what_the_notes_hold() -> None:
    settings, priming = memory(60), PrimingSettings(recall_pairs=2)
    steps = make_notes(DOCUMENT, CHUNKS, PROMPTS, settings, priming, random.Random(3))
    rows = pairs(DOCUMENT, CHUNKS, PROMPTS, settings, priming, random.Random(3))
    writes = [row for row in rows if row.metadata["pair"] == "write"]
    recalls = [row for row in rows if row.metadata["pair"] == "recall"]
    assert [row.step for row in writes] == [1, 2, 3]
    before = NO_MEMORY
    for row, chunk, notes in zip(writes, CHUNKS, steps, strict=True):
        assert list(row.prompt_ids) == PROMPTS.write(QUESTION, chunk, before)
        assert PROMPTS.text_of(row.completion_ids) == notes.text
        before = notes.text
    assert len(recalls) == 6
    for row in recalls:
        prompt, entity = PROMPTS.tokenizer.decode(row.prompt_ids), PROMPTS.text_of(row.completion_ids)[7:-1]
        assert entity in steps[row.step - 1].entities - {MASK_TOKEN}
        assert steps[row.step - 1].text in prompt
        masked = prompt.partition("Text:\n")[2].partition("\nNotes:")[0]
        assert "[TARGET]" in masked
        assert entity not in masked
    for row in rows:
        assert (row.loss, row.kind, row.logprobs, row.group_id) == ("cross_entropy", "prime", (), "d")


def test_no_recall_pairs_and_nothing_to_note() -> None:
    none = PrimingSettings(recall_pairs=0)
    assert len(pairs(DOCUMENT, CHUNKS, PROMPTS, memory(60), none, random.Random(0))) == 3
    blank = replace(DOCUMENT, mentions=())
    assert pairs(blank, ("nothing here", "nor here"), PROMPTS, memory(60), none, random.Random(0)) == []


def test_facts_target_is_the_default_style() -> None:
    assert FACTS.words > 0
    settings = memory(80)
    facts = make_notes(DOCUMENT, CHUNKS, PROMPTS, settings, PrimingSettings(), random.Random(0))
    bare = make_notes(DOCUMENT, CHUNKS, PROMPTS, settings, PrimingSettings(target="entities"), random.Random(0))
    assert "self-proclaimed" in facts[0].text
    assert "self-proclaimed" not in bare[0].text
    with pytest.raises(ValueError, match="target"):
        PrimingSettings(target="prose")  # type: ignore[arg-type]
