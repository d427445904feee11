"""Wikitext and dumps: what a person reads on the page, no more, with links that spell what they span."""

from __future__ import annotations

import bz2
import gzip
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.corpus.mediawiki import read_dump
from memtrain.corpus.pages import Link, Page, Paragraph, ReadReport, cut
from memtrain.corpus.tidy import apply
from memtrain.corpus.wikitext import FORMULA, has_leftover_markup, paragraphs_of

SITE = """<siteinfo><sitename>W</sitename><dbname>dewiki</dbname><base>b</base><generator>g</generator>
<case>first-letter</case><namespaces><namespace key="0" case="first-letter" />
<namespace key="6" case="first-letter">Datei</namespace><namespace key="14" case="first-letter">Kategorie</namespace>
<namespace key="4" case="first-letter">Projekt</namespace></namespaces></siteinfo>"""


def page(title: str, text: str, ns: int = 0, redirect: str = "", more: str = "") -> str:
    tag = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{tag}{more}<revision><id>2</id>"
        f"<timestamp>2016-04-22T10:19:33Z</timestamp><contributor><ip>1.2.3.4</ip></contributor>"
        f'<model>wikitext</model><format>text/x-wiki</format><text xml:space="preserve">{text}</text>'
        f"<sha1>x</sha1></revision></page>"
    )


def dump(*pages: str, site: str = "") -> bytes:
    inside = "\n".join(pages)
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10">'
    return f"{head}{site}{inside}</mediawiki>".encode()


def read(data: bytes) -> tuple[list[Page], ReadReport]:
    report = ReadReport()
    return list(read_dump(io.BytesIO(data), "dump.xml", report)), report


def texts(wikitext: str) -> list[str]:
    return [paragraph.text for paragraph in paragraphs_of(wikitext)]


def links(wikitext: str) -> list[tuple[str, str]]:
    return [(p.text[link.start : link.end], link.target) for p in paragraphs_of(wikitext) for link in p.links]


@pytest.mark.parametrize(
    ("wikitext", "plain"),
    [
        ("'''Ada''' is ''a'' '''''name'''''.", "Ada is a name."),
        ("''Time'''s cover", "Time's cover"),
        ("The dog's '''bone'''", "The dog's bone"),
        ("a<ref>no {{cite|x}}</ref> b<ref name=x /> c<ref name='y'>z</ref>.", "a b c."),
        ("a <!-- no --> b", "a b"),
        ("one line\n<!-- no -->\nmore", "one line more"),
        ("a [[File:x.jpg|thumb|a [[b|c]] d]] e", "a e"),
        ("a [[Category:B]][[fr:Chose]] c", "a c"),
        ("see [[:Category:B|that]]", "see that"),
        ("{{Infobox\n| a = {{b|c}}\n}}\nText of [[it]].", "Text of it."),
        ("x [http://a.b the site] y [http://a.b] z http://c.d/e.", "x the site y z."),
        ("a&nbsp;b &ndash; c &amp; d", "a b – c & d"),
        ("H<sub>2</sub>O<br/>m<sup>2</sup> <span style='x'>s</span> <small>t</small>", "H2O m² s t"),
        ("<nowiki>[[x]]</nowiki> y", "[[x]] y"),
        ("Acid ({{IPAc-en|a}}; from ''acidus'') burns", "Acid (from acidus) burns"),
        ("Acid ({{IPAc-en|a}}, {{respell|x}}) burns", "Acid burns"),
        ("wide {{convert|5|km|mi}}, {{convert|5|to|6|ft|m}}", "wide 5 km, 5 to 6 ft"),
        ("{{lang|fr|''chose'' [[x]]}} and {{lang-de|Ding}}", "chose x and Ding"),
        ("{{As of|2016|4}}, {{frac|1|2}} {{nowrap|1=a b}} {{'}}", "As of April 2016, 1/2 a b '"),
        ("10<sup>-3</sup> of the 5<sup>th</sup>", "10⁻³ of the 5th"),
        ("{{convert|64081.5|km2}}, {{Pop density|3645257|640081.87|km2|sqmi}}", "64,081.5 km², 5.7/km²"),
        ("a{{citation needed|date=May 2016}} .", "a."),
        ("a __NOTOC__ b", "a b"),
        ("{| class=x\n| a || b\n|-\n| c\n|}\nafter", "after"),
    ],
)
def test_what_a_reader_sees(wikitext: str, plain: str) -> None:
    assert texts(wikitext) == [plain]


def test_headings_lists_and_blank_lines_part_paragraphs() -> None:
    wikitext = "a\nb\n\nc\n== H ==\nd\n* item [[x]]\n# one\n: indented\n; term\ne\n----\nf<blockquote>g</blockquote>h"
    assert texts(wikitext) == ["a b", "c", "d", "e", "f", "g", "h"]


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("[[political philosophy]]", [("political philosophy", "Political philosophy")]),
        ("[[stateless society|stateless ''societies'']]", [("stateless societies", "Stateless society")]),
        ("two [[bus]]es", [("buses", "Bus")]),
        ("[[Mercury (planet)|]] shines", [("Mercury", "Mercury (planet)")]),
        ("[[Rome#History|its past]]", [("its past", "Rome")]),
        ("[[#History|above]]", []),
        ("[[wikt:word|word]] [[Wikipedia:X|y]] [[de:Ding|thing]]", []),
        ("[[2001: A Space Odyssey]]", [("2001: A Space Odyssey", "2001: A Space Odyssey")]),
        ("[[a_b]] [[ c ]]", [("a b", "A b"), ("c", "C")]),
        ("'''[[Bold]]''' ({{IPA-de|x}} [[after]])", [("Bold", "Bold"), ("after", "After")]),
        ("a  [[ x|  spaced   out ]]  b", [("spaced out", "X")]),
        ("[[東京]]都", [("東京", "東京")]),
    ],
)
def test_links(wikitext: str, expected: list[tuple[str, str]]) -> None:
    assert links(wikitext) == expected


def test_formulas_and_broken_markup_are_marked() -> None:
    assert FORMULA in texts("where <math>x</math> is")[0]
    assert FORMULA in texts("where {{math|''x''}} is")[0]
    assert all(has_leftover_markup(text) for text in ("a {{b", "a ]] b", "a <div b=c> d", "x &nbsp; y", "|| a"))
    assert not has_leftover_markup('1 < 2 and 3 > 2, "N{ jag" & R&D, a | b [c]')


WORDS = st.sampled_from(["alpha", "Ünder", "東京", "x's", "7.5%", "(", ")", "-", ";", "'", ",", ".", "  ", "\n"])
MARKUP = st.sampled_from(
    [
        *("''", "'''", "'''''", "''''", "[[Link]]", "[[Link|''shown'' text]]", "[[File:a|b [[c]]]]", "{{t|a}}"),
        *("{{lang|fr|[[mot]]s}}", "<ref>r</ref>", "<!-- c -->", "\n\n", "\n* ", "== h ==\n", "&nbsp;", "{|\n|a\n|}\n"),
        *("<br>", "[[", "]]", "{{", "}}", "|", "<math>x</math>", "[http://a b]", "<b>", "</b>", "<nowiki>''</nowiki>"),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(WORDS, MARKUP), max_size=30).map("".join))
def test_any_wikitext_gives_tidy_text_and_exact_links(wikitext: str) -> None:
    for paragraph in paragraphs_of(wikitext):
        assert paragraph.text == paragraph.text.strip() != ""
        assert "\n" not in paragraph.text
        assert "  " not in paragraph.text
        end = 0
        for link in paragraph.links:
            surface = paragraph.text[link.start : link.end]
            assert end <= link.start < link.end
            assert surface == surface.strip() != ""
            end = link.end


SAFE = st.sampled_from(
    ["", " ", "X. ", "''", "'''", "{{t}}", "({{t}}; ", ")", "<ref>r</ref>", "&nbsp;", "\n\n", "É ", ", ", "== h ==\n"]
)


@given(st.lists(SAFE, min_size=1, max_size=20))
def test_links_spell_what_was_written(between: list[str]) -> None:
    """Whatever stands between them, and whatever of it goes out."""
    wikitext = "".join(f"{text}[[T{i}| ''shown {i}'' ]]" for i, text in enumerate(between))
    assert links(wikitext) == [(f"shown {i}", f"T{i}") for i in range(len(between))]


EDITS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.text("xy", max_size=3)), max_size=6)


@given(st.text("ab ", min_size=60, max_size=80), EDITS, st.integers(0, 30), st.integers(1, 30))
def test_edits_keep_what_a_link_spells(text: str, steps: list[tuple[int, int, str]], start: int, size: int) -> None:
    """A link no edit touches spells the same afterwards, wherever it is."""
    edits, position = [], 0
    for gap, length, replacement in steps:
        edits.append((position + gap, position + gap + length, replacement))
        position += gap + length + 1
    link = Link(start, start + size, "T")
    new, moved = apply(text, [link], edits)
    assert 0 <= moved[0].start <= moved[0].end <= len(new)
    if all(e[1] <= link.start or e[0] >= link.end for e in edits if e[0] != e[1]) and all(
        not link.start <= e[0] <= link.end for e in edits if e[0] == e[1]
    ):
        assert new[moved[0].start : moved[0].end] == text[link.start : link.end]


@given(st.text("ab.  ", min_size=1, max_size=300), st.integers(5, 60), st.data())
def test_cut_keeps_the_text_and_the_links(text: str, max_chars: int, data: st.DataObject) -> None:
    text = " ".join(text.split())
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    end = data.draw(st.integers(min(start + 1, len(text)), len(text)))
    given_links = (Link(start, end, "T"),) if text else ()
    pieces = list(cut(Paragraph(text, given_links), max_chars))
    assert "".join("".join(piece.text.split()) for piece in pieces) == "".join(text.split())
    assert all(len(piece.text) <= max_chars for piece in pieces)
    kept = [piece.text[link.start : link.end] for piece in pieces for link in piece.links]
    assert kept in ([], [text[start:end]])
    if len(text) <= max_chars and text and text[start:end] == text[start:end].strip():
        assert len(kept) == 1


def test_cut_prefers_sentence_ends_to_initials_and_spaces() -> None:
    text = 'He met J. Smith. "Go!" he said. Then a very long rest without any end'
    pieces = [piece.text for piece in cut(Paragraph(text), 32)]
    assert pieces == ['He met J. Smith. "Go!" he said.', "Then a very long rest without", "any end"]
    assert [piece.text for piece in cut(Paragraph("東京。大阪です。京都"), 9)] == ["東京。大阪です。", "京都"]
    assert [piece.text for piece in cut(Paragraph("x" * 25), 10)] == ["x" * 10, "x" * 10, "x" * 5]


def test_dump_without_site_information() -> None:
    pages, report = read(dump(page("Ada", "A [[name]]."), page("Talk:Ada", "no", ns=1)))
    assert [(p.title, [q.text for q in p.paragraphs]) for p in pages] == [("Ada", ["A name."])]
    assert report.dropped == {"page outside the main namespace": 1}
    assert report.skipped == []


def test_namespaces_of_the_wiki_are_known() -> None:
    pages, _ = read(dump(page("A", "x [[Datei:b.jpg|mini|c]] [[Kategorie:D]] [[Projekt:E|f]] [[G]]"), site=SITE))
    (paragraph,) = pages[0].paragraphs
    assert paragraph.text == "x f G"
    assert [link.target for link in paragraph.links] == ["G"]


def test_redirects_are_aliases() -> None:
    redirects = [page("Comp acc", "#REDIRECT [[C]]", redirect="C#History"), page("CA", "#REDIRECT [[C]]", redirect="C")]
    pages, report = read(dump(*redirects, page("C", "text"), redirects[0]))
    assert [p.title for p in pages] == ["C"]
    assert report.aliases == {"C": ["Comp acc", "CA"]}


def test_last_revision_counts_and_other_models_are_left_out() -> None:
    old = page("A", "new").replace("<revision>", "<revision><id>1</id><text>old</text></revision><revision>", 1)
    module = page("B", "return 1").replace("<model>wikitext", "<model>Scribunto")
    pages, report = read(dump(old, module))
    assert [q.text for p in pages for q in p.paragraphs] == ["new"]
    assert report.dropped == {"page in Scribunto": 1}


def test_bad_page_costs_one_page() -> None:
    pages, report = read(dump(page("A", "a"), page("B", "b", more="<surprise/>"), page("C", ""), page("D", "d")))
    assert [p.title for p in pages] == ["A", "D"]
    assert [item.reason.partition(":")[0] for item in report.skipped] == ["bad page", "page without text"]


@pytest.mark.parametrize("bracket", ["{{a|", "[[b|"])
def test_brackets_without_end_cost_one_page(bracket: str) -> None:
    pages, report = read(dump(page("A", bracket * 5000), page("B", bracket * 90), page("C", "c")))
    assert pages[-1].title == "C"
    assert report.skipped[0].where == "dump.xml: A"
    assert "nested more than 100 deep" in report.skipped[0].reason


@pytest.mark.parametrize("cut_at", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("form", ["xml", "bz2", "gz"])
def test_truncated_dump_yields_what_was_readable(form: str, cut_at: float) -> None:
    # Random words, so that compression leaves many blocks to cut between.
    words = " ".join(str(hash((i, "x"))) for i in range(60_000))
    data = dump(page("First", "whole page"), *(page(f"P{i}", words[i * 9000 : i * 9000 + 9000]) for i in range(100)))
    pack = {"xml": lambda d: d, "bz2": lambda d: bz2.compress(d, 1), "gz": gzip.compress}[form]
    packed = pack(data)
    packed = packed[: int(len(packed) * cut_at)]
    unpack = {
        "xml": io.BytesIO,
        "bz2": lambda d: bz2.BZ2File(io.BytesIO(d)),
        "gz": lambda d: gzip.GzipFile("", "rb", 9, d),
    }
    handle = unpack[form](io.BytesIO(packed) if form == "gz" else packed)
    report = ReadReport()
    pages = list(read_dump(handle, "dump.xml", report))
    assert pages[0].title == "First"
    assert 101 * cut_at * 0.6 < len(pages) < 101
    assert [item.reason for item in report.skipped] == ["truncated"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"<html><p>x</p></html>", "not a MediaWiki dump: its root is <html>"),
        (b"<mediawiki><page><title>A</oops></page></mediawiki>", "broken XML: mismatched tag"),
        (b"no xml at all", "broken XML: syntax error"),
    ],
)
def test_what_is_no_dump_is_listed(data: bytes, reason: str) -> None:
    pages, report = read(data)
    assert pages == []
    assert report.skipped[0].reason.startswith(reason)


def test_memory_does_not_grow_with_the_dump() -> None:
    """The root keeps no element of a page that was read: what a stream of any length needs."""
    import tracemalloc

    def stream(n: int) -> int:
        class Endless(io.RawIOBase):
            parts = iter([b"<mediawiki>", *(page(f"P{i}", "text " * 200).encode() for i in range(n)), b"</mediawiki>"])

            def read(self, size: int = -1) -> bytes:
                return next(self.parts, b"")

        tracemalloc.start()
        count = sum(1 for _ in read_dump(Endless(), "x", ReadReport()))  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == n
        return peak

    stream(50)
    assert stream(1500) < 1.5 * stream(150)


def test_entities_of_xml_are_not_expanded() -> None:
    bomb = '<!DOCTYPE m [<!ENTITY a "xxxxxxxxxx">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 10}">' for i in range(12)
    )
    data = (bomb + "]>").encode() + dump(page("A", "&m;"))
    pages, report = read(data)
    assert sum(len(q.text) for p in pages for q in p.paragraphs) < 10**7
    assert report.skipped or pages


def test_link_pattern_of_plain_text() -> None:
    assert not re.search(r"\[\[|\]\]|''", " ".join(texts("''a'' [[b|c]] '''d''' [[e]]s")))
