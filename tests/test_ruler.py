"""The RULER family: texts, questions and answers against independent readings of the text; scores against RULER's."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_corpus import sentence

from memtrain.corpus.counting import estimate_tokens
from memtrain.errors import UserError
from memtrain.evaluation.ruler.frequency import CommonTask, FrequentTask, zeta
from memtrain.evaluation.ruler.haystack import DEPTHS, sentences
from memtrain.evaluation.ruler.needles import NeedleTask
from memtrain.evaluation.ruler.scoring import scores, string_match_all, string_match_part
from memtrain.evaluation.ruler.tasks import TASKS, RulerMaker
from memtrain.evaluation.ruler.variables import VariableTask
from memtrain.types import Passage

NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")
KINDS = {
    "numbers": r"[1-9]\d{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "words": r"[a-z]+-[a-z]+",
}


def pool(pages: int = 60) -> list[Passage]:
    """Pages of four sentences; the second one of each is of words that no other page has: 1,440 in all."""
    rng = random.Random(1)
    syllables = ["ba", "den", "fir", "go", "lum", "mor", "net", "pi", "ro", "sal", "ti", "vo"]
    words = rng.sample(["".join(parts) for parts in itertools.product(syllables, repeat=3)], 24 * pages)
    told = [" ".join(words[24 * page : 24 * page + 24]).capitalize() + "." for page in range(pages)]
    return [
        Passage(f"p{n}#0", f"Page {n}", " ".join([sentence(rng), told[n], sentence(rng), sentence(rng)]))
        for n in range(pages)
    ]


POOL = pool()
MAKER = RulerMaker(POOL, estimate_tokens)
ASKED = st.tuples(st.integers(0, 50), st.integers(0, 3))


def answers_by_reading(name: str, text: str, question: str) -> set[str]:
    """What a careful reader would answer, from text and question alone."""
    if name == "vt":
        values: dict[str, str] = {}
        for variable, right in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)\.", text):
            values[variable] = values.get(right, right)
        return {variable for variable, value in values.items() if value in question}
    if name in ("cwe", "fwe"):
        words = re.findall(r"\d+\. (\S+)", text) if name == "cwe" else re.findall(r"[a-z]+", text)
        asked = int(re.findall(r"\d+", question)[0])
        ranked = Counter(words).most_common()
        assert ranked[asked - 1][1] > ranked[asked][1]  # nobody can argue about the last one
        return {word for word, _ in ranked[:asked]}
    named = re.split(r", | and ", re.findall(r" for (.*) in the text", question)[0])
    return {value for _, key, value in NEEDLE.findall(text) if key in named}


@pytest.mark.parametrize("name", TASKS)
@given(asked=ASKED, length=st.integers(600, 3000))
@settings(max_examples=12, deadline=None)
def test_the_text_holds_the_answers_and_nothing_else_to_say(name: str, asked: tuple[int, int], length: int) -> None:
    sample = MAKER.make(name, length, *asked)
    assert answers_by_reading(name, sample.text, sample.question) == set(sample.answers)
    assert len(set(sample.answers)) == len(sample.answers)
    assert sample == RulerMaker(POOL, estimate_tokens).make(name, length, *asked)
    assert sample.n_tokens == estimate_tokens([sample.text])[0] <= length
    assert sample.n_tokens > 0.8 * length
    assert len(sample.passages) == len(sample.paragraphs)
    for needle in sample.needles:
        assert sample.text[needle.offset :].startswith(needle.text)
        assert sample.text.count(needle.text) == 1
    assert list(sample.needles) == sorted(sample.needles, key=lambda needle: needle.offset)
    longer = MAKER.make(name, 2 * length, *asked)
    assert (longer.question, longer.answers) == (sample.question, sample.answers)


@pytest.mark.parametrize("name", TASKS)
@given(asked=ASKED)
@settings(max_examples=12, deadline=None)
def test_the_smallest_length_is_the_smallest(name: str, asked: tuple[int, int]) -> None:
    least = MAKER.smallest(name, *asked)
    sample = MAKER.make(name, least, *asked)
    assert sample.n_tokens == least
    assert answers_by_reading(name, sample.text, sample.question) == set(sample.answers)
    with pytest.raises(UserError, match=rf"^{name}: .* at least {least}$"):
        MAKER.make(name, least - 1, *asked)


@given(asked=ASKED, length=st.integers(300, 1500), name=st.sampled_from(["niah-multi-key", "vt"]))
@settings(max_examples=25, deadline=None)
def test_without_the_needles_the_passages_stand_there(name: str, asked: tuple[int, int], length: int) -> None:
    sample = MAKER.make(name, length, *asked)
    texts = {passage.text for passage in POOL}
    rest = list(sample.paragraphs)
    for needle in sample.needles:
        rest = [paragraph.replace(needle.text, "\0") for paragraph in rest]
    plain = [re.sub(r"\0 | \0|\0", "", paragraph) for paragraph in rest]
    whole = [(text, passage) for text, passage in zip(plain, sample.passages, strict=True) if passage]
    assert all(text == passage.text for text, passage in whole)
    cut = [text for text, passage in zip(plain, sample.passages, strict=True) if not passage]
    assert len(cut) <= 1
    assert all(any(known.startswith(text) for known in texts) for text in cut)
    heads = re.findall(r"(?m)^Document (\d+):$", sample.text)
    assert heads == [str(number) for number in range(1, len(plain) + 1)]
    assert sample.text == "\n\n".join(f"Document {n}:\n{text}" for n, text in enumerate(sample.paragraphs, 1))
    longer = MAKER.make(name, 2 * length, *asked)
    assert longer.passages[: len(whole)] == sample.passages[: len(whole)]


@pytest.mark.parametrize(
    ("name", "keys", "values", "queries", "key_kind", "value_kind"),
    [
        ("niah-single", 1, 1, 1, "words", "numbers"),
        ("niah-single-uuid", 1, 1, 1, "words", "uuids"),
        ("niah-multi-key", 4, 1, 1, "words", "numbers"),
        ("niah-multi-value", 1, 4, 1, "words", "numbers"),
        ("niah-multi-query", 4, 1, 4, "words", "numbers"),
    ],
)
def test_needles_are_those_of_ruler(
    name: str, keys: int, values: int, queries: int, key_kind: str, value_kind: str
) -> None:
    for number in range(20):
        sample = MAKER.make(name, 800, number, 5)
        found = NEEDLE.findall(sample.text)
        assert len(found) == keys * values == len(sample.needles)
        assert len({key for _, key, _ in found}) == keys
        assert len(sample.answers) == queries * values
        for kind, key, value in found:
            assert kind == value_kind
            assert re.fullmatch(KINDS[value_kind], value)
            assert re.fullmatch(KINDS[key_kind], key)
        assert ("are all" in sample.question) == (len(sample.answers) > 1)


def test_a_haystack_of_needles_holds_the_wanted_one_once() -> None:
    for name, kind in (("niah-multi-key-lines", "words"), ("niah-multi-key-uuid", "uuids")):
        sample = MAKER.make(name, 2000, 3, 0)
        found = NEEDLE.findall(sample.text)
        assert len(found) > 15
        assert all(re.fullmatch(KINDS[kind], key) for _, key, _ in found)
        assert [value for _, key, value in found if key == sample.needles[0].key] == list(sample.answers)


def test_chains_and_hops_of_variables() -> None:
    made = MAKER.make("vt", 3000, 1, 1, VariableTask(chains=3, hops=5))
    assert len(made.needles) == 18
    assert len(made.answers) == 6
    assert answers_by_reading("vt", made.text, made.question) == set(made.answers)
    assert {needle.value for needle in made.needles} == set(re.findall(r"= (\d{5})\.", made.text))
    places = [made.text.index(f"VAR {name} = ") for name in made.answers]
    assert places == sorted(places)  # an assignment comes before it is used


def test_depths_lie_all_over_the_text() -> None:
    samples = [MAKER.make("niah-single", 1500, number, 0) for number in range(120)]
    places = [(needle.depth, needle.offset / len(sample.text)) for sample in samples for needle in sample.needles]
    assert all(abs(depth - place) < 0.15 for depth, place in places)
    assert len({round(depth, 6) for depth, _ in places}) > 30  # nearly all of the forty
    assert {DEPTHS[0], DEPTHS[-1]} <= {depth for depth, _ in places}


def test_a_small_pool_comes_again() -> None:
    maker = RulerMaker(POOL[:3], estimate_tokens)
    sample = maker.make("niah-multi-query", 4000, 0, 0)
    counts = Counter(passage.id for passage in sample.passages if passage)
    assert set(counts) == {"p0#0", "p1#0", "p2#0"}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert answers_by_reading("niah-multi-query", sample.text, sample.question) == set(sample.answers)


def test_a_passage_that_tells_is_left_out() -> None:
    key = MAKER.make("niah-single", 500, 0, 0).needles[0].key
    telling = Passage("x#0", "X", f"Everybody knows {key}. It is old.")
    maker = RulerMaker([telling, *POOL], estimate_tokens)
    assert maker.make("niah-single", 9000, 0, 0).text.count(key) == 1
    with pytest.raises(UserError, match="no held-out passage to hide anything in"):
        RulerMaker([telling], estimate_tokens).make("niah-single", 500, 0, 0)


def test_frequent_words_fall_off_as_a_zeta_distribution() -> None:
    task = FrequentTask(alpha=2.0)
    counts = task.counts(100_000, 50)
    assert counts[0] == int(100_000 * 6 / 3.141592653589793**2)
    assert all(abs(counts[rank - 1] - counts[0] / rank**2) <= 1 for rank in range(1, 51))
    text = MAKER.make("fwe", 3000, 0, 0).text.split()
    seen = Counter(text)
    assert seen["..."] == max(seen.values())
    assert sorted(seen.values(), reverse=True)[:4] == pytest.approx([seen["..."] / k**2 for k in (1, 2, 3, 4)], abs=1)
    assert all(re.fullmatch(r"[a-z]{6}|\.{3}", word) for word in seen)


def test_zeta_is_zeta() -> None:
    for alpha, value in ((2.0, 1.6449340668482264), (3.0, 1.2020569031595942), (4.0, 1.0823232337111382)):
        assert zeta(alpha) == pytest.approx(value, rel=1e-12)
    assert zeta(1.5) == pytest.approx(2.612375348685488, rel=1e-9)


def test_common_words_are_repeated_as_in_ruler() -> None:
    short, long = (MAKER.make("cwe", length, 0, 0) for length in (1200, 4096))
    for sample, often, seldom in ((short, 6, 1), (long, 30, 3)):
        items = re.findall(r"(\d+)\. (\S+)", sample.text)
        assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
        counts = Counter(word for _, word in items)
        assert all(count == (often if word in sample.answers else seldom) for word, count in counts.items())
    assert short.answers == long.answers
    stretched = MAKER.make("cwe", 60_000, 0, 0)  # more than 1,440 words fill: all come more often
    counts = Counter(re.findall(r"[a-z]+", stretched.text))
    often, seldom = {counts[word] for word in stretched.answers}, set(counts.values())
    assert len(often) == 1
    assert often.pop() == 10 * min(seldom) > 30
    assert stretched.n_tokens > 0.8 * 60_000
    assert CommonTask().repeats(4095) == (6, 1)


@pytest.mark.parametrize("wrong", [{"keys": 1, "queries": 2}, {"values": 0}, {"keys": 41}, {"queries": 0}])
def test_impossible_needles_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        replace(NeedleTask(), **wrong)


@given(st.text(alphabet="aB .!?\"'J。「」\n", max_size=60))
@settings(max_examples=200, deadline=None)
def test_sentences_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text
    assert all(sentences(text))


def test_sentences_end_where_they_do() -> None:
    text = 'J. Smith served in the U.S. Army. "Why?" he said. It cost 2.5 marks! 東京は大きい。川がある。'
    assert [piece.strip() for piece in sentences(text)] == [
        "J. Smith served in the U.S. Army.",
        '"Why?"',
        "he said.",
        "It cost 2.5 marks!",
        "東京は大きい。",
        "川がある。",
    ]


# ---- scores ---------------------------------------------------------------------------------------------------------


def ruler_all(preds: list[str], refs: list[list[str]]) -> float:
    """RULER's formula, over a set of predictions, in percent."""
    shares = [len([r for r in ref if pred.lower().find(r.lower()) >= 0]) / len(ref) for pred, ref in zip(preds, refs)]  # noqa: B905
    return 100 * sum(shares) / len(shares)


def ruler_part(preds: list[str], refs: list[list[str]]) -> float:
    return 100 * sum(any(pred.lower().find(r.lower()) >= 0 for r in ref) for pred, ref in zip(preds, refs)) / len(preds)  # noqa: B905


REPLY = st.text(alphabet="aAbB12, ", max_size=12)
REFERENCES = st.lists(st.text(alphabet="aAbB12", min_size=1, max_size=3), min_size=1, max_size=4)


@given(st.lists(st.tuples(REPLY, REFERENCES), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_scores_are_those_of_ruler(pairs: list[tuple[str, list[str]]]) -> None:
    replies, references = [reply for reply, _ in pairs], [refs for _, refs in pairs]
    ours = [string_match_all(reply, refs) for reply, refs in pairs]
    assert 100 * sum(ours) / len(ours) == pytest.approx(ruler_all(replies, references))
    part = [string_match_part(reply, refs) for reply, refs in pairs]
    assert 100 * sum(part) / len(part) == pytest.approx(ruler_part(replies, references))


def test_the_box_is_scored_where_there_is_one() -> None:
    assert scores("I saw 11 and 22. \\boxed{11, 33}", ["11", "22"]) == {
        "match_all": 0.5,
        "match_part": 1.0,
        "answered": 1.0,
    }
    assert scores("I saw 11 and 22.", ["11", "22"])["match_all"] == 1.0  # RULER scores the whole generation
    single = scores("\\boxed{The Quick-Otter}", ["quick-otter"])
    assert single == {"match_all": 1.0, "exact": 0.0, "f1": 1.0, "answered": 1.0}
    assert set(scores("", ["7"]).values()) == {0.0}
    with pytest.raises(ValueError):
        string_match_all("x", [])


def test_common_words_need_words() -> None:
    with pytest.raises(UserError, match=r"at least 20 different words, but the corpus has 2 on its held-out side"):
        RulerMaker([Passage("a#0", "A", "Two words only.")], estimate_tokens).make("cwe", 500, 0, 0)
