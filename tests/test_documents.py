"""Training documents: what they promise, whatever the corpus."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_corpus import check, composer, recipe, sentence

from memtrain.corpus import compose
from memtrain.corpus.compose import document_seed
from memtrain.corpus.documents import split_passages
from memtrain.corpus.masking import survives
from memtrain.errors import UserError
from memtrain.types import Entity, Passage


def test_seed_is_stable_and_fits_63_bits() -> None:
    assert document_seed(0, "train", 0) == 0x2C7D3F43ABF2115A
    seeds = {document_seed(s, split, n) for s in range(5) for split in ("train", "held_out") for n in range(50)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_related_passages_are_in_and_the_order_is_mixed() -> None:
    texts = [f"the w{i} of {name}" for i in range(20) for name in ("Ada Lovelace", "Konrad Zuse")]
    passages = [Passage(f"P{i}#0", "", text) for i, text in enumerate(texts)]
    made = composer(passages, recipe(documents={"related": 1, "random": 2}))
    places = []
    for document in made.draw_many(range(60)):
        pivot = int(document.pivot_id[1:].split("#")[0])
        assert passages[pivot ^ 1].id in document.passage_ids  # the other one with the same rare word
        places.append(document.passage_ids.index(document.pivot_id))
    assert set(places) == {0, 1, 2, 3}


def test_every_passage_may_be_pivot_and_every_entity_answer() -> None:
    passages = [Passage(f"P{i}#0", "", f"then N{chr(97 + i)}xx met M{chr(97 + i)}yy there") for i in range(6)]
    made = composer(passages, recipe(documents={"related": 1, "random": 1}))
    answers = {document.answer for document in made.draw_many(range(150))}
    assert answers == {f"{kind}{chr(97 + i)}{tail}" for i in range(6) for kind, tail in (("N", "xx"), ("M", "yy"))}


def test_masks_reach_every_passage_line_breaks_and_other_spellings() -> None:
    texts = [
        "and then Konrad Zuse built it",
        "by Konrad\nZuse himself",
        "KONRAD ZUSE in capitals",
        "of konrad-zuse and Konradzuse",
        "nothing of him",
    ]
    passages = [Passage(f"P{i}#0", "", text) for i, text in enumerate(texts)]
    made = composer(passages, recipe(documents={"related": 2, "random": 2}))
    document = next(d for d in made.draw_many(range(40)) if d.pivot_id == "P0#0")
    assert document.answer == "Konrad Zuse"
    assert document.n_masks == 4
    assert "Konradzuse" in document.text


def test_answer_that_stays_readable_is_dropped_and_counted() -> None:
    texts = ["they met Turkey there", "we eat turkey here", "then Ada Lovelace slept"]
    passages = [Passage(f"P{i}#0", "", text) for i, text in enumerate(texts)]
    made = composer(passages, recipe(documents={"related": 1, "random": 1}))
    assert {document.answer for document in made.draw_many(range(30))} == {"Ada Lovelace"}
    assert made.drops[compose.STILL_READABLE] > 0
    assert made.drops[compose.NO_ENTITY] > 0


def test_aliases_are_masked_on_request_and_never_mentioned() -> None:
    def passage(i: int, text: str, *names: str) -> Passage:
        entities = tuple(
            Entity(name, ((text.index(name), text.index(name) + len(name)),), "link", "links", aliases)
            for name, aliases in ((name, ("United Nations",) if name == "UN" else ()) for name in names)
        )
        return Passage(f"P{i}#0", f"T{i}", text, entities)

    passages = [
        passage(0, "the UN met", "UN"),
        passage(1, "the United Nations met in Turin", "United Nations", "Turin"),
    ]
    for masked in (False, True):
        settings = recipe(entities={"finder": "links"}, documents={"related": 1, "random": 0, "mask_aliases": masked})
        drawn = composer(passages, settings, "links").draw_many(range(20))
        document = next(document for document in drawn if document.answer == "UN")
        assert document.aliases == ("United Nations",)
        assert ("United Nations" not in document.text) is masked
        assert [mention.text for mention in document.mentions] == ["Turin"]


def test_headings_do_not_give_the_answer() -> None:
    texts = [f"counted {n} sheep with Ada{chr(97 + n)}" for n in range(10, 20)]
    passages = [Passage(f"P{i}#0", "", text) for i, text in enumerate(texts)]
    made = composer(passages, recipe(documents={"related": 2, "random": 7}))
    for document in made.draw_many(range(60)):
        assert not survives(document.text, document.answer)
        assert document.answer != "10"
    assert any(document.answer.isdigit() for document in made.draw_many(range(60)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), pages=st.integers(6, 20))
def test_any_corpus_of_sentences_gives_sound_documents(seed: int, pages: int) -> None:
    rng = random.Random(seed)
    passages = [Passage(f"P{i}#0", "", sentence(rng)) for i in range(pages)]
    made = composer(passages, recipe(seed=seed))
    for document in made.draw_many(range(3)):
        check(document, {passage.id: passage for passage in passages}, size=6)


@given(
    titles=st.lists(st.text("abc", max_size=2), min_size=1, max_size=30),
    held_out=st.floats(0.05, 0.95),
)
def test_split_is_by_page_and_complete(titles: list[str], held_out: float) -> None:
    passages = [Passage(f"key{i}#{i}", title, "text") for i, title in enumerate(titles)]
    splits = split_passages(passages, held_out)
    sides = {split: {passage.title for passage in side} - {""} for split, side in splits.items()}
    assert not sides["train"] & sides["held_out"]
    assert sorted(p.id for side in splits.values() for p in side) == sorted(p.id for p in passages)
    more = split_passages(passages, 0.96)
    assert {p.id for p in splits["held_out"]} <= {p.id for p in more["held_out"]}


def test_split_share() -> None:
    passages = [Passage(f"k{i}#0", f"title {i}", "text") for i in range(4000)]
    assert abs(len(split_passages(passages, 0.15)["held_out"]) / 4000 - 0.15) < 0.03


def test_nothing_to_hide_is_one_sentence() -> None:
    passages = [Passage(f"P{i}#0", "", "all words are small here") for i in range(8)]
    with pytest.raises(UserError, match="entities"):
        composer(passages, recipe()).draw_many([0])


def test_a_passage_whose_folded_text_holds_the_key_only_inside_a_word_stays() -> None:
    passages = [Passage("A#0", "", "then Ann came"), Passage("B#0", "", "the annex and Annapolis")]
    document = composer(passages, recipe(documents={"related": 0, "random": 1})).draw_many(range(20))
    first = next(d for d in document if d.answer == "Ann")
    assert first.n_masks == 1
    assert "the annex and Annapolis" in first.text


def test_unicode_corpus() -> None:
    passages = [Passage(f"P{i}#0", "", f"{i}番目に東京で「源氏物語」を{1900 + i}年に読んだ。") for i in range(6)]
    made = composer(passages, recipe(documents={"related": 2, "random": 2}))
    for document in made.draw_many(range(20)):
        check(document, {passage.id: passage for passage in passages}, size=5)
