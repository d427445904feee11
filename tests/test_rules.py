"""Rule-based entities, in several scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtrain.corpus.masking import count_occurrences
from memtrain.corpus.rules import RulesFinder
from memtrain.types import Passage


def found(text: str, finder: RulesFinder | None = None) -> dict[str, str]:
    return {entity.text: entity.kind for entity in (finder or RulesFinder()).find(Passage("p#0", "", text))}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It went to Abraham Lincoln's widow.", {"Abraham Lincoln": "name"}),
        ("He met Charles de Gaulle.", {"Charles de Gaulle": "name"}),
        ("the University of the South won", {"University of the South": "name"}),
        ("then J. F. Kennedy came", {"J. F. Kennedy": "name"}),
        ("with Martin Luther King Jr. there", {"Martin Luther King Jr.": "name"}),
        ("in St. Louis today", {"St. Louis": "name"}),
        ("by Mary O'Brien-Smith", {"Mary O'Brien-Smith": "name"}),
        ("during World War II", {"World War II": "name"}),
        ("for Algeria's Soviet allies", {"Algeria": "name", "Soviet": "name"}),
        ("the U.S. and NATO", {"U.S.": "acronym", "NATO": "acronym"}),
        ("paid $5 million, US$3.2 billion and 3,5 Millionen Euro",
         {"$5 million": "money", "US$3.2 billion": "money", "3,5 Millionen Euro": "money"}),
        ("40% or 12.5 percent", {"40%": "percent", "12.5 percent": "percent"}),
        ("on 5 March 1865, on March 5, 1865 and on 1865-03-05",
         {"5 March 1865": "date", "March 5, 1865": "date", "1865-03-05": "date"}),
        ("in 1914, the 1960s, the 19th century and 44 BC",
         {"1914": "date", "1960s": "date", "19th century": "date", "44 BC": "date"}),
        ("ran 1,234.5 km with 12,345 others", {"1,234.5 km": "quantity", "12,345": "number"}),
        ('read "The Raven" and “A Study”', {"The Raven": "title", "A Study": "title"}),
        ('a "mere word" here', {}),
        ("only 7 of them", {}),
        ("26 мая 1799 года в Москве родился Александр Пушкин",
         {"26 мая 1799": "date", "Москве": "name", "Александр Пушкин": "name"}),
        ("για τον Νίκο Καζαντζάκη το 1883", {"Νίκο Καζαντζάκη": "name", "1883": "date"}),
        ("彼は2020年3月5日にワシントンで「源氏物語」を40%読んだ",
         {"2020年3月5日": "date", "ワシントン": "name", "源氏物語": "title", "40%": "percent"}),
        ("他在《红楼梦》和Google", {"红楼梦": "title", "Google": "name"}),
        ("في 5 مايو 2020 بلغت 40٪", {"5 مايو 2020": "date", "40٪": "percent"}),
        ("मई 2020 में", {"मई 2020": "date"}),
    ],
)  # fmt: skip
def test_examples(text: str, expected: dict[str, str]) -> None:
    assert found(text) == expected


def test_sentence_starts_are_no_names() -> None:
    assert found("However Lincoln left. Moreover, nobody came. The Greeks stayed.") == {
        "Lincoln": "name",
        "Greeks": "name",
    }


def test_the_corpus_teaches_which_words_are_small() -> None:
    corpus = [Passage(f"p#{i}", "", "Gestern kam er, und man sprach gestern mit Zuse. Zuse ging.") for i in range(3)]
    finder = RulesFinder(corpus)
    assert found("Gestern Zuse. Zuse sprach.", finder) == {"Zuse": "name"}


def test_a_name_over_a_line_break_is_one_name_and_a_blank_line_parts() -> None:
    assert found("by John\nSmith") == {"John\nSmith": "name"}
    assert "John\n\nSmith" not in found("by John\n\nSmith of York")


def test_limits_say_what_it_cannot_do() -> None:
    assert "Chinese" in RulesFinder().limits()


MIXED = st.lists(
    st.sampled_from(
        ["Ada Lovelace", "the", "of", "U.S.", "$5 million", "40%", "1914", ". ", ", ", "\n", " ", '"The Raven"', "東京",
         "アメリカ", "Москва", "5 May 1914", "O'Brien", "J.", "St.", "3.5 km", "दिल", "NATO's", "(", ")", "-", "é", "I"]
    ),
    max_size=20,
)  # fmt: skip


@given(pieces=MIXED, glue=st.sampled_from(["", " "]))
def test_spans_spell_the_entity_and_can_be_masked(pieces: list[str], glue: str) -> None:
    text = glue.join(pieces)
    taken: set[int] = set()
    for entity in RulesFinder().find(Passage("p#0", "", text)):
        assert entity.spans == tuple(sorted(entity.spans))
        for start, end in entity.spans:
            assert text[start:end] == entity.text == entity.text.strip()
            assert not taken & set(range(start, end))
            taken |= set(range(start, end))


@given(text=st.text(max_size=80))
def test_any_text_is_survived(text: str) -> None:
    for entity in RulesFinder().find(Passage("p#0", "", text)):
        assert all(text[start:end] == entity.text for start, end in entity.spans)


@given(pieces=MIXED)
def test_entities_between_spaces_stand_at_boundaries(pieces: list[str]) -> None:
    text = " ".join(pieces)
    for entity in RulesFinder().find(Passage("p#0", "", text)):
        assert count_occurrences(text, entity.text) >= 1
