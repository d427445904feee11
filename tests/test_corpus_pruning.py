"""What is left out before the tree is built changes nothing of what is read."""

from __future__ import annotations

import random

import pytest
from small_wiki import article

from memtrain.corpus import wikitext
from memtrain.corpus.templates import is_silent
from memtrain.corpus.tidy import tidy
from memtrain.corpus.wikitext import paragraphs_of

TRICKY = [
    "A [[bus]]{{citation needed|date=May}}es stop.",
    "A [[bus]]es stop {{Infobox|a={{lang|fr|b}}|{{{c|d}}}}} and {{lang|fr|bon [[jour]]}}.",
    "x {| class=a style={{s|t}}\n! {{flag|Italy}}\n|-\n| [[Cell]] || {|\n| inner\n|}\n|}\n y [[z]]",
    "[[File:a.jpg|thumb|[[nested]] {{a|b}} caption]]after [[:File:b.jpg|shown]] and [[Category:X|key [[y]]]].",
    "[[File:a.jpg|thumb|never closed and [[link]] text {{open|x [[a]]",
    "{{{{{name}}}|a}} {{ convert | 5 | km }} {{Lang_x|de|Wort}} {{script/Hebrew|abc}} {{#if:a|b|c}}",
    "<table><tr><td>[[a]]</td></tr></table> <div>{{nowrap|[[b]] c}}</div> {{-}} {{!}} {{As of|2016|lc=y}}",
    "{| \n|}\n{|\n| a\n text ''it'' '''bold''' [[x|y]]s <br/> {{cite|title={{{!}}|url=http://a.b/{{c}}}} end",
    "Two  spaces\tand\u00a0others , and . a ( ; born 1950) [ ] () (a) b",
]


def read(text: str) -> list[object]:
    return list(paragraphs_of(text, {"bild"}))


@pytest.mark.parametrize("text", TRICKY)
def test_pruned_pages_read_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = read(text)
    monkeypatch.setattr(wikitext, "prune", lambda tokens, silent, dropped: tokens)
    assert pruned == read(text)


def test_any_mixture_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    pieces = [piece for text in [*TRICKY, article(rng)] for piece in text.split(" ")]
    texts = [" ".join(rng.choices(pieces, k=40)) for _ in range(300)] + [article(rng) for _ in range(20)]
    pruned = [read(text) for text in texts]
    monkeypatch.setattr(wikitext, "prune", lambda tokens, silent, dropped: tokens)
    assert pruned == [read(text) for text in texts]


def test_templates_that_show_an_argument_are_not_silent() -> None:
    shown = ["Lang", "lang-fr", "Script/Hebrew", " convert\n", "As_of", "US$", "USS", "music", "pop density", "nowrap"]
    assert not any(map(is_silent, shown))
    assert is_silent("cite web")
    assert is_silent("Infobox person")


def test_white_space_and_holes_are_tidied() -> None:
    assert tidy(" a \t b\u00a0\u00a0c , d ( ; e) ''f'' . ", []).text == "a b c, d (e) f."
    assert tidy("a b", []).text == "a b"
