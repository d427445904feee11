"""The published verifier and token F1, by example and by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtrain.tasks.verifier import boxable, exact_match, last_boxed, token_f1, word_f1


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("\\boxed{Paris}", "Paris"),
        ("a \\boxed{x} b \\boxed{y} c", "y"),
        ("\\boxed{f{g}h}", "f{g}h"),
        ("\\boxed{}", ""),
        ("no box", None),
        ("\\boxed{open", None),
        ("\\boxed{x} and \\boxed{open", "x"),
        ("\\boxed {x}", None),
        ("\\boxed{a \\boxed{b} c}", "b"),
        ("\\boxed{x}" + "." * 291, "x"),
        ("\\boxed{x}" + "." * 292, None),
        ("\\boxed{" + "x" * 400 + "}", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "golds", "right"),
    [
        ("\\boxed{New York}", ["newyork"], 1.0),
        ("\\boxed{ NEW\tYORK\n}", ["New York"], 1.0),
        ("\\boxed{New York City}", ["New York"], 0.0),
        ("New York", ["New York"], 0.0),
        ("\\boxed{b}", ["a", "B"], 1.0),
        ("\\boxed{U.S}", ["U.S."], 0.0),
        ("\\boxed{x}", [], 0.0),
    ],
)
def test_exact_match(text: str, golds: list[str], right: float) -> None:
    assert exact_match(text, golds) == right


@pytest.mark.parametrize(
    ("said", "gold", "f1"),
    [
        ("the New York", "New York City", 2 * 2 / (2 + 3)),
        ("Paris", "paris.", 1.0),
        ("Paris", "London", 0.0),
        ("a a b", "a b b", 2 * 1 / (1 + 2)),  # the article "a" is no word
        ("x x y", "x y y", 2 * 2 / (3 + 3)),  # multisets: one x, one y
        ("", "x", 0.0),
        ("$", "$", 1.0),
        ("東京", "東京", 1.0),
        ("U.S.", "US", 1.0),
    ],
)
def test_word_f1(said: str, gold: str, f1: float) -> None:
    assert word_f1(said, gold) == pytest.approx(f1)
    assert token_f1(f"\\boxed{{{said}}}", [gold]) == pytest.approx(f1)
    assert token_f1(said, [gold]) == 0.0  # not boxed


def test_f1_takes_the_best_spelling() -> None:
    assert token_f1("\\boxed{Big Apple}", ["New York", "The Big Apple"]) == 1.0
    assert token_f1("\\boxed{Big Apple}", []) == 0.0


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="{}\\"), min_size=1, max_size=30).filter(str.strip)


@given(
    answer=WORDS, before=st.text(max_size=400), after=st.text(st.characters(exclude_characters="\\{}"), max_size=200)
)
def test_a_box_with_the_answer_is_right_whatever_stands_around(answer: str, before: str, after: str) -> None:
    reply = f"{before}\\boxed{{ {answer.upper() if answer.upper().lower() == answer.lower() else answer} }}{after}"
    assert boxable(answer)
    assert exact_match(reply, ["something else", answer]) == 1.0
    assert token_f1(reply, [answer]) == pytest.approx(1.0)


@given(said=st.text(max_size=30), gold=st.text(max_size=30))
def test_f1_is_symmetric_and_bounded(said: str, gold: str) -> None:
    score = word_f1(said, gold)
    assert score == pytest.approx(word_f1(gold, said))
    assert 0.0 <= score <= 1.0


@given(text=st.text(alphabet="{}\\boxed ", max_size=60))
def test_last_boxed_is_balanced_and_stands_in_the_text(text: str) -> None:
    boxed = last_boxed(text)
    if boxed is not None:
        assert f"\\boxed{{{boxed}}}" in text
        assert boxed.count("{") == boxed.count("}")
    assert not boxable(text + "}" * (text.count("{") + 1))
    assert not boxable("  ")
