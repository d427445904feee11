"""Exact match and token F1 against torchmetrics' SQuAD metric, and where ours differ from it on purpose.

* F1 is SQuAD's, except that punctuation of every script is dropped (SQuAD: ASCII alone) and that an answer of nothing
  but signs or articles keeps them, so that ``$`` can be right or wrong (SQuAD: any two such answers are equal).
* Exact match is the published verifier of MemTrain, not SQuAD's: white space is ignored altogether, while punctuation
  and articles count.
"""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memtrain.tasks.verifier import exact_match, token_f1

squad = pytest.importorskip("torchmetrics.functional.text").squad

WORDS = [
    "Paris",
    "paris",
    "New",
    "York",
    "the",
    "The",
    "a",
    "an",
    "of",
    "2nd",
    "1843",
    "U.S.",
    "O'Neil",
    "x-ray",
    "élan",
    "東京",
]
ANSWERS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="{}\\"), min_size=1, max_size=20)


def theirs(said: str, golds: list[str]) -> tuple[float, float]:
    """SQuAD's exact match and F1 in [0, 1]."""
    found = squad(
        [{"prediction_text": said, "id": "0"}],
        [{"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": "0"}],
    )
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100


def boxed(text: str) -> str:
    return f"I think it is \\boxed{{{text}}}."


def says_something(text: str) -> bool:
    """Whether anything is left when punctuation and articles are gone."""
    words = "".join(c if c.isalnum() or c.isspace() else "" for c in text.lower()).split()
    return any(word not in ("a", "an", "the") for word in words)


@given(said=ANSWERS, golds=st.lists(ANSWERS, min_size=1, max_size=3))
def test_f1_is_squads(said: str, golds: list[str]) -> None:
    assume(all(map(says_something, [said, *golds])))
    assert token_f1(boxed(said), golds) == pytest.approx(theirs(said, golds)[1], abs=1e-6)


@given(said=ASCII, gold=ASCII)
def test_f1_is_squads_on_any_ascii(said: str, gold: str) -> None:
    assume(says_something(said) and says_something(gold))
    assert token_f1(boxed(said), [gold]) == pytest.approx(theirs(said, [gold])[1], abs=1e-6)


@given(said=ANSWERS, golds=st.lists(ANSWERS, min_size=1, max_size=3))
def test_exact_match_is_stricter_about_words_than_squads(said: str, golds: list[str]) -> None:
    """Whatever we call right, SQuAD does too, as long as both are spaced alike; the other way round it is not so."""
    if exact_match(boxed(said), golds):
        assert any(said.lower() == gold.lower() for gold in golds) or theirs(said, golds)[0] == 0
        if any(said.lower() == gold.lower() for gold in golds):
            assert theirs(said, golds)[0] == 1
    plain = [
        " ".join(w for w in g.split() if w.isalnum() and w.lower() not in ("a", "an", "the")) for g in [said, *golds]
    ]
    if all(plain):
        told = theirs(plain[0], plain[1:])[0]
        assert exact_match(boxed(plain[0]), plain[1:]) >= told


@pytest.mark.parametrize(
    ("said", "gold", "ours", "squads"),
    [
        ("Paris", "paris", 1.0, 1.0),
        ("the Beatles", "Beatles", 0.0, 1.0),  # articles count
        ("U.S.", "US", 0.0, 1.0),  # punctuation counts
        ("newyork", "New York", 1.0, 0.0),  # spaces do not
    ],
)
def test_where_exact_match_differs_on_purpose(said: str, gold: str, ours: float, squads: float) -> None:
    assert exact_match(boxed(said), [gold]) == ours
    assert theirs(said, [gold])[0] == squads


@pytest.mark.parametrize(
    ("said", "gold", "ours", "squads"),
    [
        ("«Paris»", "Paris", 1.0, 0.0),  # quotation marks of other scripts are punctuation too
        ("1914–1918", "1914-1918", 1.0, 0.0),
        ("$", "%", 0.0, 1.0),  # to SQuAD both are nothing
        ("The The", "A", 0.0, 1.0),  # a band and a letter
    ],
)
def test_where_f1_differs_on_purpose(said: str, gold: str, ours: float, squads: float) -> None:
    assert token_f1(boxed(said), [gold]) == ours
    assert theirs(said, [gold])[1] == squads


def test_without_a_box_there_is_no_answer() -> None:
    """SQuAD takes any text; the published verifier wants a box."""
    assert theirs("Paris", ["Paris"]) == (1.0, 1.0)
    assert exact_match("Paris", ["Paris"]) == token_f1("Paris", ["Paris"]) == 0.0
