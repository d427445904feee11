"""Question files in their own formats, and long texts made around gold paragraphs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.corpus.counting import estimate_tokens
from memtrain.errors import UserError
from memtrain.qa.haystack import HaystackMaker
from memtrain.qa.questions import Question, read_passages, read_questions
from memtrain.types import Passage

HOTPOT = {
    "_id": "h1",
    "question": "Which river does the bridge of the ballad cross?",
    "answer": "Arachthos",
    "supporting_facts": [["Ballad", 1], ["Bridge of Arta", 0]],
    "context": [
        ["Bridge of Arta", ["It crosses the Arachthos.", " It is old."]],
        ["Ballad", ["A song.", " It is about a bridge."]],
        ["Thyamis", ["A river."]],
    ],
}
MUSIQUE = {
    "id": "m1",
    "question": "Who led the masons?",
    "answer": "Markos",
    "answer_aliases": ["Master Markos"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Masons", "paragraph_text": "Markos led them.", "is_supporting": True},
        {"idx": 1, "title": "Arta", "paragraph_text": "A town.", "is_supporting": False},
    ],
}
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Arta_Bridge",
            "paragraphs": [
                {
                    "context": "It was rebuilt in 1602.",
                    "qas": [
                        {"id": "s1", "question": "When?", "answers": [{"text": "1602", "answer_start": 18}] * 2},
                        {"id": "s2", "question": "By whom?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}
NQ_GOLD = {
    "question": "who wrote it",
    "answers": ["Nobody", "no one"],
    "ctxs": [
        {"title": "Song", "text": "Nobody wrote it.", "hasanswer": True, "isgold": True},
        {"title": "Other", "text": "Nobody knows.", "hasanswer": True, "isgold": False},
    ],
}
NQ_OPEN = {"question": "when was it", "answer": ["1602", "in 1602"]}


def put(folder: Path, content: Any, name: str = "data.json") -> Path:
    path = folder / name
    text = "\n".join(map(json.dumps, content)) if ".jsonl" in name else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def titles(passages: tuple[Passage, ...]) -> list[str]:
    return [passage.title for passage in passages]


def test_hotpot_and_2wiki(tmp_path: Path) -> None:
    (found,) = read_questions(put(tmp_path, [HOTPOT])).questions
    assert (found.id, found.answers, found.complete) == ("h1", ("Arachthos",), True)
    assert titles(found.gold) == ["Bridge of Arta", "Ballad"]
    assert titles(found.distractors) == ["Thyamis"]
    assert found.gold[0].text == "It crosses the Arachthos. It is old."
    on_the_hub = {
        **HOTPOT,
        "context": {"title": ["Ballad", "X"], "sentences": [["A song.", "About it."], ["Y."]]},
        "supporting_facts": {"title": ["Ballad", "Bridge of Arta"], "sent_id": [1, 0]},
    }
    (hub,) = read_questions(put(tmp_path, [on_the_hub], "hub.jsonl")).questions
    assert titles(hub.gold) == ["Ballad"]
    assert not hub.complete  # one supporting paragraph is not in its context
    assert hub.gold[0].text == "A song. About it."


def test_musique(tmp_path: Path) -> None:
    (found,) = read_questions(put(tmp_path, [MUSIQUE])).questions
    assert found.answers == ("Markos", "Master Markos")
    assert (titles(found.gold), titles(found.distractors)) == (["Masons"], ["Arta"])


def test_squad(tmp_path: Path) -> None:
    found = read_questions(put(tmp_path, SQUAD))
    assert [(q.id, q.answers, q.gold[0].title) for q in found.questions] == [("s1", ("1602",), "Arta Bridge")]
    assert found.skipped == {"no accepted answer": 1}


@pytest.mark.parametrize("name", ["nq.jsonl", "nq.jsonl.gz", "nq.json"])
def test_natural_questions(tmp_path: Path, name: str) -> None:
    found = read_questions(put(tmp_path, [NQ_GOLD, NQ_OPEN], name)).questions
    assert [q.answers for q in found] == [("Nobody", "no one"), ("1602", "in 1602")]
    assert (titles(found[0].gold), titles(found[0].distractors)) == (["Song"], ["Other"])
    assert found[1].gold == found[1].distractors == ()
    assert len({q.id for q in found}) == 2


def test_answers_that_are_missing_are_counted(tmp_path: Path) -> None:
    broken = [{**HOTPOT, "answer": ""}, {"answer": "x"}, {**MUSIQUE, "answerable": False}, NQ_OPEN, [1]]
    found = read_questions(put(tmp_path, broken))
    assert len(found.questions) == 1
    assert found.skipped == {"no accepted answer": 2, "no question": 1, "no format that is known": 1}
    with pytest.raises(UserError, match="2 x no accepted answer"):
        read_questions(put(tmp_path, broken[::2][:2], "none.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "neither JSON"),
        (b'{"question": ', "line 1"),
        (b'{"a": 1}\n{"b"', "line 2"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.json") as raised:
        read_questions(path)
    if content:
        assert said in str(raised.value)


def test_passages(tmp_path: Path) -> None:
    assert titles(tuple(read_passages(put(tmp_path, [{"title": "A", "text": "a"}, {"title": "B", "text": "b"}])))) == [
        "A",
        "B",
    ]
    assert [p.text for p in read_passages(put(tmp_path, {"A": ["One.", " Two."], "B": ["Three."]}))] == [
        "One. Two.",
        "Three.",
    ]
    assert titles(tuple(read_passages(put(tmp_path, [HOTPOT, MUSIQUE])))) == [
        *("Bridge of Arta", "Ballad", "Thyamis", "Masons", "Arta")
    ]
    [ulm] = read_passages(put(tmp_path, [{"id": "0", "contents": '"Ulm"\nA city.'}]))  # as Search-R1 keeps them
    assert (ulm.title, ulm.text) == ("Ulm", "A city.")


# ---- haystacks ------------------------------------------------------------------------------------------------------


def passage(number: int, words: int) -> Passage:
    return Passage(f"p{number}", f"Title {number}", " ".join(f"w{number}x{n}" for n in range(words)))


POOL = [passage(number, 20 + number % 40) for number in range(300)]
GOLD = (Passage("g1", "Gold", "The bridge crosses the Arachthos."), Passage("g2", "Song", "It is about the bridge."))
ASKED = Question("q", "Which river?", ("Arachthos",), GOLD, (passage(1000, 10),))


@given(st.integers(100, 6000), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_haystack_is_full_and_holds_its_gold(tokens: int, seed: int) -> None:
    made = HaystackMaker(POOL, estimate_tokens).make(ASKED, tokens, seed)
    assert tokens - 30 <= made.n_tokens <= tokens  # the shortest paragraph with its head is longer
    assert abs(sum(estimate_tokens([made.text])) - made.n_tokens) <= made.n_documents * 2
    assert made.text.count("Document ") == made.n_documents
    assert len(made.gold_places) == 2
    for place, offset in zip(made.gold_places, made.gold_offsets, strict=True):
        assert made.text[offset:].startswith(f"Document {place}:\n")
        assert any(made.text[offset:].split("\n", 1)[1].startswith(f"{g.title}\n{g.text}") for g in GOLD)
    assert "w1000x9" in made.text  # its own distractors come first


def test_a_seed_gives_one_text_and_another_another() -> None:
    maker = HaystackMaker(POOL, estimate_tokens)
    assert maker.make(ASKED, 2000, 1) == maker.make(ASKED, 2000, 1)
    assert maker.make(ASKED, 2000, 1) == HaystackMaker(POOL, estimate_tokens).make(ASKED, 2000, 1)
    assert maker.make(ASKED, 2000, 1).text != maker.make(ASKED, 2000, 2).text


def test_no_distractor_answers_the_question() -> None:
    telling = [Passage("t1", "Arachthos", "A river."), Passage("t2", "X", "It flows as the arachthos."), GOLD[0]]
    made = HaystackMaker([*telling, *POOL], estimate_tokens).make(ASKED, 5000, 0)
    assert made.text.lower().count("arachthos") == 1
    polite = Question("y", "Is it old?", ("yes",), GOLD)  # stands anywhere, tells nothing
    assert HaystackMaker([Passage("t", "T", "yes " * 30), *POOL[:5]], estimate_tokens).make(polite, 120, 0)


def test_lengths_that_cannot_be_made_are_one_sentence() -> None:
    maker = HaystackMaker(POOL[:5], estimate_tokens)
    with pytest.raises(UserError, match="set lengths of at least"):
        maker.make(ASKED, 10, 0)
    with pytest.raises(UserError, match="more distractors"):
        maker.make(ASKED, 50_000, 0)
    with pytest.raises(UserError, match="without all of its gold"):
        maker.make(Question("n", "?", ("x",)), 500, 0)
