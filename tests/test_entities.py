"""Link entities, the choice of a finder, and what may be hidden."""

from __future__ import annotations

import sys
import types
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtrain.corpus.entities import LinksFinder, hideable, make_finder, merge_spans, page_of, trim, unfit
from memtrain.corpus.rules import RulesFinder
from memtrain.errors import UserError
from memtrain.recipe import EntitySettings
from memtrain.types import Entity, Passage

SETTINGS = EntitySettings()


def linked(name: str, text: str, *links: tuple[str, str], title: str = "Page") -> Passage:
    """A passage whose links are ``(visible text, target)``, each at its first occurrence."""
    entities = []
    for visible, target in links:
        start = text.index(visible)
        aliases = () if target == visible else (target,)
        entities.append(Entity(visible, ((start, start + len(visible)),), "link", "links", aliases))
    return Passage(name, title, text, tuple(entities))


def by_text(entities: tuple[Entity, ...]) -> dict[str, Entity]:
    return {entity.text: entity for entity in entities}


def test_links_are_found_again_in_their_passage_and_names_in_their_page() -> None:
    first = linked("Page#0", "Ada Lovelace liked philosophy. Ada Lovelace wrote.",
                   ("Ada Lovelace", "Ada Lovelace"), ("philosophy", "Philosophy"))  # fmt: skip
    second = linked("Page#1", "Of Ada Lovelace and philosophy, and Adas.")
    other = linked("Other#0", "Ada Lovelace elsewhere.", title="Other")
    finder = LinksFinder([first, second, other], {})
    assert by_text(finder.find(first))["Ada Lovelace"].spans == ((0, 12), (31, 43))
    assert set(by_text(finder.find(second))) == {"Ada Lovelace"}
    assert finder.find(other) == ()


def test_title_is_an_entity_where_it_recurs() -> None:
    passage = linked("M#0", "Mercury is a planet.", title="Mercury (planet)")
    assert LinksFinder([passage], {}).find(passage) == (Entity("Mercury", ((0, 7),), "title", "links", ()),)


def test_possessives_and_punctuation_are_trimmed() -> None:
    passage = linked("P#0", "In Lincoln's hat, the U.S. Army.", ("Lincoln's", "Abraham Lincoln"), ("U.S.", "USA"))
    found = by_text(LinksFinder([passage], {}).find(passage))
    assert found["Lincoln"].spans == ((3, 10),)
    assert found["U.S."].spans == ((22, 26),)


@pytest.mark.parametrize(
    ("visible", "target", "expected"),
    [
        ("Lincoln", "Abraham Lincoln", ("Abraham Lincoln", "Abe Lincoln")),
        ("NHS", "National Health Service", ("National Health Service",)),
        ("Iran", "Afghans in Iran", ()),
        ("gave up", "State cession", ()),
        ("mole", "Mole (unit)", ("Gram mole",)),
        ("Abe Lincoln", "Abraham Lincoln", ("Abraham Lincoln",)),
    ],
)
def test_aliases_are_synonyms_only(visible: str, target: str, expected: tuple[str, ...]) -> None:
    aliases = {"Abraham Lincoln": ["Abe Lincoln"], "Mole (unit)": ["Gram mole"], "Afghans in Iran": ["Wrong"]}
    passage = linked("P#0", f"There {visible} stands.", (visible, target))
    assert by_text(LinksFinder([passage], aliases).find(passage))[visible].aliases == expected


def test_auto_takes_links_where_the_corpus_has_them() -> None:
    with_link = linked("P#0", "Ada wrote.", ("Ada", "Ada"))
    without = Passage("P#1", "", "Ada wrote.")
    assert make_finder("auto", [with_link, without], {}).name == "links"
    assert make_finder("auto", [with_link, *[without] * 20], {}).name == "rules"
    assert make_finder("auto", [], {}).name == "rules"
    assert isinstance(make_finder("rules", [without], {}), RulesFinder)


@pytest.mark.parametrize("spec", ["links", "spacy:", "words", ""])
def test_unusable_finders_are_refused_by_key(spec: str) -> None:
    with pytest.raises(UserError, match=r"entities\.finder"):
        make_finder(spec, [Passage("P#0", "", "text")], {})


def test_missing_spacy_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r"pip install 'memtrain\[spacy\]' and"):
        make_finder("spacy:en_core_web_sm", [Passage("P#0", "", "text")], {})


class FakePipeline:
    """Stands for a loaded spaCy pipeline: the part of its interface that the finder relies on."""

    def __init__(self, pipe_names: list[str]) -> None:
        self.pipe_names = pipe_names

    def remove_pipe(self, name: str) -> None:
        self.pipe_names.remove(name)

    def pipe(self, texts, batch_size):
        for text in texts:
            start = text.find("Ada's")
            span = types.SimpleNamespace(start_char=start, end_char=start + 5, label_="PERSON")
            yield types.SimpleNamespace(text=text, ents=[span] if start >= 0 else [])


def test_spacy_entities_keep_their_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = FakePipeline(["tok2vec", "tagger", "parser", "ner"])
    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=lambda name: pipeline))
    finder = make_finder("spacy:some", [], {})
    assert pipeline.pipe_names == ["tok2vec", "ner"]
    passages = [Passage("P#0", "", "By Ada's hand."), Passage("P#1", "", "nobody")]
    assert list(finder.find_many(passages)) == [(Entity("Ada", ((3, 6),), "PERSON", "spacy:some"),), ()]
    assert finder.find(passages[0])[0].text == "Ada"


def test_spacy_pipeline_that_is_missing_or_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError("[E050] Can't find model")

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=missing))
    with pytest.raises(UserError, match="spacy download some"):
        make_finder("spacy:some", [], {})
    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=lambda name: FakePipeline(["tagger"])))
    with pytest.raises(UserError, match="finds no entities"):
        make_finder("spacy:some", [], {})


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("x Paris's y", (2, 9), "Paris"),
        ("x U.S. y", (2, 6), "U.S."),
        ("x King Jr. y", (2, 10), "King Jr."),
        ("x end. y", (2, 6), "end"),
        ("x ’tis y", (2, 6), "tis"),
        ("x ... y", (2, 5), ""),
        ("x $5 y", (1, 5), "$5"),
        ("x 40% y", (2, 5), "40%"),
    ],
)
def test_trim(text: str, span: tuple[int, int], expected: str) -> None:
    start, end = trim(text, *span)
    assert text[start:end] == expected


@given(text=st.text("ab .,'s’", max_size=12), data=st.data())
def test_trim_stays_inside(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    a, b = trim(text, start, end)
    assert start <= a <= b <= max(end, a)
    assert text[a:b] == text[a:b].strip()


WORDS = ["New York", "York", "New York City", "Ada", "a", ". "]


@given(st.lists(st.sampled_from([*WORDS, "U.S.", " ", "x"]), max_size=12).map(" ".join))
def test_merged_spans_spell_their_entity_and_do_not_overlap(text: str) -> None:
    merged = merge_spans(text, [Entity(word.strip(), ()) for word in WORDS[:4]])
    spans = sorted(span for entity in merged for span in entity.spans)
    assert all(text[start:end] == entity.text for entity in merged for start, end in entity.spans)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "short"), ("--", "short"), ("5%", "digit"), ("5", "short"), ("the", "stopword"), ("IT", "stopword"),
        ("mask", "mask token"), ("[TARGET] x", "mask token"), ("Document", "heading"), ("Document 3", "heading"),
        ("12", "heading"), ("150", "heading"), ("151", None), ("1914", None), ("a b c d e f g h", "long"),
        ("w" * 101, "long"), ("U.S.", None), ("$5 million", None), ("40%", None), ("東京", None),
    ],
)  # fmt: skip
def test_unfit(text: str, reason: str | None) -> None:
    assert unfit(text, SETTINGS, headings=150) == reason


def test_hideable_counts_in_the_pivot() -> None:
    def passage(n: int) -> Passage:
        return Passage("P#0", "", "Ada! " * n + "Adas")

    entity = Entity("Ada", ())
    assert [hideable(entity, passage(n), SETTINGS) for n in (0, 1, 4, 5)] == [False, True, True, False]


def test_page_of() -> None:
    assert page_of(Passage("C#sharp#12", "", "text")) == "C#sharp"
    assert page_of(Passage("plain", "", "text")) == "plain"
