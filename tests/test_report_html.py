"""The HTML report's parts without a browser: diffs, marks, escaping, damaged runs, numbers, size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import HOSTILE, make_run
from tiny_tokenizer import make_tokenizer

from memtrain.commands.report import report
from memtrain.errors import UserError
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.recipe import MemorySettings
from memtrain.report.html import charts, held_out, load, markup, memories, rollouts, sources, tables
from memtrain.report.html.curves import panels
from memtrain.report.html.diff import ADDED, KEPT, LOST, MOST_WORDS, diff, sentences, words
from memtrain.report.html.marks import changed, marked
from memtrain.report.html.page import write_report
from memtrain.report.summary import read_summary

SENTENCES = st.lists(st.sampled_from(["the ", "cat ", "sat", ", ", ". ", "\n", "Paris ", "日本", "1912 ", "é", "  "]))
TEXTS = st.one_of(SENTENCES.map("".join), st.text(max_size=60))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "made", steps=12, memory={"memory_tokens": 90})


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def text_of(pieces: list[Any], *ops: int) -> str:
    return "".join(piece[0] for piece in pieces if (piece[1] if len(piece) > 1 else KEPT) in ops)


# diffs and marks


@given(TEXTS)
def test_words_and_sentences_are_the_whole_text(text: str) -> None:
    assert "".join(words(text)) == text
    assert "".join(sentences(text)) == text


@given(TEXTS, TEXTS)
def test_kept_and_added_is_the_new_memory_kept_and_lost_the_old_one(old: str, new: str) -> None:
    pieces = diff(old, new)
    assert "".join(text for op, text in pieces if op in (KEPT, ADDED)) == new
    assert "".join(text for op, text in pieces if op in (KEPT, LOST)) == old
    assert all(text for _, text in pieces)
    assert all(a[0] != b[0] for a, b in pairwise(pieces))
    assert diff(new, new) == ([(KEPT, new)] if new else [])


def test_a_diff_is_by_words() -> None:
    assert diff("Anna met Boris.", "Anna met Clara in Ulm.") == [
        (KEPT, "Anna met "), (LOST, "Boris"), (ADDED, "Clara in Ulm"), (KEPT, ".")
    ]  # fmt: skip
    # A comma or an article that both share by chance does not break a change into shreds.
    assert diff("one the red", "two the blue") == [(LOST, "one the red"), (ADDED, "two the blue")]
    assert len(diff("one 1912 red", "two 1912 blue")) == 5
    assert diff("red, blue", "one, two") == [(LOST, "red, blue"), (ADDED, "one, two")]


def test_long_memories_are_compared_in_time() -> None:
    old = "".join(f"Fact {n} is that {n * 7} came before {n * 3}. " for n in range(MOST_WORDS // 8))
    pieces = diff(old, old[300:] + "And more.")
    assert pieces[-1] == (ADDED, "And more.")
    assert len(pieces) < 6


MARKS = st.lists(st.tuples(st.sampled_from(["Paris", "cat", "1912", "日本", "the"]), st.sampled_from("hpe")))


@given(TEXTS, TEXTS, MARKS)
def test_marks_change_no_text(old: str, new: str, found: list[tuple[str, str]]) -> None:
    surfaces = [(text, kind, str(place)) for place, (text, kind) in enumerate(found)]
    pieces = changed(old, new, surfaces)
    assert text_of(pieces, KEPT, ADDED) == new
    assert text_of(pieces, KEPT, LOST) == old
    assert text_of(marked(new, surfaces), KEPT) == new


def test_what_is_marked() -> None:
    surfaces = [("[MASK]", "h", ""), ("Anna", "p", "1,2"), ("Anna Vogel", "e", "0"), ("Ulm", "e", "1")]
    assert marked("Anna met [MASK] in Ulm, not Ulmer Anna Vogel", surfaces) == [
        ["Anna", 0, "p", "1,2"], [" met "], ["[MASK]", 0, "h"], [" in "], ["Ulm", 0, "e", "1"], [", not Ulmer "],
        ["Anna", 0, "p", "1,2"], [" Vogel"],
    ]  # fmt: skip


# escaping


class Seen(HTMLParser):
    """Every element with its attributes, and the texts of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "path", "line", "circle", "rect"):
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, text: str) -> None:
        self.texts.append((self.inside[-1] if self.inside else "", text))


@given(st.text(max_size=80) | st.just(HOSTILE))
def test_a_text_stays_a_text(text: str) -> None:
    seen = Seen(markup.tag("p", text, title=text))
    plain = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", text)
    assert [tag for tag, _ in seen.tags] == ["p"]
    assert seen.tags[0][1] == {"title": plain}
    assert "".join(text for _, text in seen.texts) == plain


@given(st.recursive(st.text() | st.integers() | st.none() | st.just(HOSTILE), lambda x: st.lists(x, max_size=4)))
def test_data_cannot_end_its_element(data: object) -> None:
    seen = Seen(markup.json_block("d", data))
    assert [tag for tag, _ in seen.tags] == ["script"]
    assert json.loads("".join(text for _, text in seen.texts)) == data


def test_a_hostile_run_gives_a_page_of_our_own_elements_alone(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>'\""
    folder = make_run(tmp_path / name, steps=4, extra=HOSTILE, name=f"</title>{HOSTILE}", finished=False)
    page = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    seen = Seen(page)
    counts = [tag for tag, _ in seen.tags]
    assert counts.count("script") == 3
    assert not {"img", "iframe", "link", "object", "base", "form"} & set(counts)
    known = {"href", "src", "style"}
    assert {(key, value) for _, attributes in seen.tags for key, value in attributes.items() if key in known} == {
        ("href", f"#{anchor}") for anchor in ("overview", "results", "curves", "memories", "settings", "steps")
    }
    assert not [key for _, attributes in seen.tags for key in attributes if key.startswith("on")]
    assert "<img" not in page
    assert HOSTILE.replace("\x00", "\ufffd") in "".join(text for kind, text in seen.texts if kind == "dd")
    assert name in "".join(text for kind, text in seen.texts if kind == "h1")


def test_only_our_own_style_and_script_may_run(run: Path, tmp_path: Path) -> None:
    page = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    policy = next(a["content"] for tag, a in Seen(page).tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for pattern, kind in ((r"<style>(.*?)</style>", "style-src"), (r"<script>(.*?)</script>", "script-src")):
        [content] = re.findall(pattern, page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert not re.findall(r"(?i)https?://(?!www\.w3\.org)", page)


# what is read


def test_memories_of_rollouts_come_back_from_their_diffs(run: Path) -> None:
    data = memories.viewer_data([load.load_run(run, "run")])
    groups = {group["title"]: group for group in data["runs"][0]["groups"]}
    rows = pyarrow.parquet.read_table(run / "samples" / "grpo-000001.parquet").to_pylist()
    text = groups[memories.TRAINING]["documents"][0]
    assert text["heading"] == "chunk"
    assert {memory["cut"] for one in text["readings"] for memory in one["memories"]} == {True, False}
    for reading in text["readings"]:
        index = re.findall(r"\d+", reading["label"])[0]
        own = [row for row in rows if row["trajectory_id"] == f"{rows[0]['group_id']}/{index}"]
        writes = [row for row in own if row["kind"] == "write"]
        assert [text_of(memory["p"], KEPT, ADDED) for memory in reading["memories"]] == [row["text"] for row in writes]
        assert [memory["cut"] for memory in reading["memories"]] == [row["stop_reason"] == "length" for row in writes]
        assert reading["answer"] == next(row["text"] for row in own if row["kind"] == "answer")
        old = ""
        for memory in reading["memories"]:
            assert text_of(memory["p"], KEPT, LOST) == old
            old = text_of(memory["p"], KEPT, ADDED)


def test_probes_are_those_of_the_evaluation(run: Path) -> None:
    data = memories.viewer_data([load.load_run(run, "run")])
    group = data["runs"][0]["groups"][0]
    assert group["title"] == memories.EVALUATION
    records = json.loads((run / "eval" / "after.json").read_text())["records"]
    judged = set()
    for text in group["documents"]:
        assert not text["whole"]
        reading = next(reading for reading in text["readings"] if reading["label"] == "after")
        found = [row for row in records if row["kind"] == "recall" and row["document"] == text["id"]]
        assert {(p["k"], p["l"], p["gold"], p["answer"], p["right"]) for p in reading["probes"]} == {
            (row["step"], row["chunk"], row["gold"], row["answer"], bool(row["recall_em"])) for row in found
        }
        judged |= {probe["right"] for probe in reading["probes"]}
        for probe in reading["probes"]:  # marked in the chunk that it hides an entity of
            marks = [piece for piece in text["chunks"][probe["l"]] if len(piece) == 4 and piece[2] == "p"]
            assert any(str(probe["n"]) in piece[3].split(",") and piece[0] == probe["gold"] for piece in marks)
        assert any(piece[0] == "[MASK]" and piece[2] == "h" for chunk in text["chunks"] for piece in chunk if piece[1:])
    assert judged == {True, False}


def test_memories_of_an_evaluation_that_kept_them_all(run: Path) -> None:
    for file in (run / "eval").glob("*.json"):
        data = json.loads(file.read_text())
        for row in data["records"]:
            if row["kind"] == "reading":
                row |= {"memories": ["first", "first and", row["memory"]], "cut": [False, True, False]}
                row["chunk_chars"] = [100, 50, 80]
        file.write_text(json.dumps(data))
    text = held_out.held_out(load.load_run(run, "run"))[0]
    reading = next(reading for reading in text.readings if reading.label == "after")
    assert (reading.memories[:2], reading.first_step) == (["first", "first and"], 1)
    assert reading.cut == [False, True, False]
    assert not reading.missing
    assert [len(chunk) for chunk in text.chunks] == [100, 50, 80]


@pytest.mark.parametrize("style", ["full", "compact"])
@pytest.mark.parametrize("layout", ["section-first", "memory-first"])
@pytest.mark.parametrize("template", [True, False])
def test_chunks_are_found_in_any_prompt(style: str, layout: str, template: bool) -> None:
    tokenizer = make_tokenizer() if template else make_tokenizer(template=None)
    prompts = Prompts(tokenizer, MemorySettings(style=style, layout=layout))  # type: ignore[arg-type]
    chunks = ["Document 1:\nAnna met [MASK] in Ulm. ", "Then she went, \nand wrote.\n\n", "Document 2:\nNobody spoke."]
    asked = [tokenizer.decode(prompts.write("Who?", chunk, NO_MEMORY)) for chunk in chunks]
    assert rollouts.chunks_in_prompts("".join(chunks), asked) == [chunk.strip() for chunk in chunks]
    assert rollouts.chunks_in_prompts("Another text of some length, seen by nobody.", asked) is None


def test_a_searcher_keeps_what_stands_between_its_tags() -> None:
    row = {"kind": "search", "text": "I think.\n<memory>Ulm is\nold.</memory>\n<search>Ulm</search>"}
    assert rollouts.memory_of(row) == "Ulm is\nold."
    assert rollouts.memory_of({"kind": "search", "text": "no tags"}) == "no tags"
    assert rollouts.memory_of({"kind": "write", "text": "<memory>as it is</memory>"}) == "<memory>as it is</memory>"


@given(st.integers(1, 400), st.integers(1, 40))
def test_a_choice_is_spread_over_everything(total: int, n: int) -> None:
    chosen = sources.spread(total, n)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(n, total)
    assert chosen[0] == 0
    assert n == 1 or chosen[-1] == total - 1


# numbers


def test_the_table_says_what_the_summary_says(run: Path) -> None:
    loaded, summary = load.load_run(run, "run"), read_summary(run)
    assert loaded.difference["entities_kept"] == summary["difference"]["entities_kept"]
    shown = tables.before_after(loaded, lambda name: name == "entities_kept")
    assert shown is not None
    plain = "".join(text for _, text in Seen(shown).texts)
    for stage in ("before", "after"):
        value = summary[stage]["entities_kept"]
        assert f"{value['mean']:.3f} [{value['ci95'][0]:.3f}, {value['ci95'][1]:.3f}]" in plain
    assert f"+{summary['difference']['entities_kept']['mean']:.3f}" in plain
    assert "▲ better" in plain


def test_an_unfinished_run_is_measured_from_its_evaluations(run: Path) -> None:
    whole = load.load_run(run, "run")
    (run / "summary.json").unlink()
    part = load.load_run(run, "run")
    assert part.stages == whole.stages
    assert part.difference == whole.difference
    assert "not finished" in " ".join(part.notes)


def test_points_of_a_curve(run: Path) -> None:
    loaded = load.load_run(run, "run")
    found = {panel.key: panel for panel in panels([loaded])}
    primed, trained = found["grad_norm"].series
    assert [x for x, _ in primed.points] == [1, 2, 3, 4, 5]
    assert [x for x, _ in trained.points] == list(range(6, 18))
    lines = [row for row in loaded.metrics if row["stage"] == "grpo"]
    assert [y for _, y in found["kl"].series[0].points] == [row["kl"] for row in lines]
    share = [row["dropped_groups"] / (row["dropped_groups"] + row["groups"]) for row in lines]
    assert [y for _, y in found["dropped_share"].series[0].points] == share


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    found = charts.ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert all(low - span * 1e-3 <= tick <= low + span * 1.001 for tick in found)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_every_value_is_inside_the_axis(values: list[float]) -> None:
    low, high = charts.bounds(values)
    assert low < high
    assert all(low <= value <= high for value in values)


def test_settings_that_differ(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", steps=4, finished=False, seed=9, memory={"memory_tokens": 80})
    runs = load.load_runs([run, other])
    between = tables.settings_table(runs, among_runs=True)
    assert between is not None
    shown = re.findall(r"<code>(.*?)</code>", between)
    assert set(shown) == {"seed", "memory.memory_tokens", "train.steps"}
    defaults = tables.settings_table(runs, among_runs=False)
    assert defaults is not None
    assert {"tasks.recall_reward", "memory.style", "seed"} < set(re.findall(r"<code>(.*?)</code>", defaults))


def test_runs_on_the_same_documents_are_paired(run: Path, tmp_path: Path) -> None:
    better = make_run(tmp_path / "better", steps=4, skill=0.95)
    shown = tables.between_runs(load.load_runs([run, better]), ["entities_kept"])
    assert shown is not None
    assert "better − run" in "".join(text for _, text in Seen(shown).texts)
    other = make_run(tmp_path / "others", steps=4, passages=3)
    file = other / "eval" / "after.json"
    file.write_text(file.read_text().replace('"gold": "', '"gold": "not '))
    assert tables.between_runs(load.load_runs([run, other]), ["entities_kept"]) is None


# folders as they are found


def damaged_middle(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:3], "{not json", '["no step"]', *lines[3:]]) + "\n")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half a summary": (lambda run: (run / "summary.json").write_text('{"before": {"rec'), "summary.json is not valid"),
    "a summary of other things": (lambda run: (run / "summary.json").write_text("[1]"), "summary.json is not valid"),
    "wrong numbers": (
        lambda run: (run / "summary.json").write_text(
            '{"before": {"recall_em": {"mean": "x", "ci95": [0], "n": 1}, "recall_em_distance_x": 3}, "after": [],'
            ' "difference_by_stage": 4, "seconds": [], "machine": "a", "versions": 1, "difference": {"a": null}}'
        ),
        "",
    ),
    "half a last step": (
        lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-40]),
        "middle of a line",
    ),
    "lines that are no steps": (damaged_middle, "2 lines are no steps"),
    "metrics of other kinds": (
        lambda run: (run / "metrics.jsonl").write_text(
            '{"stage": "grpo", "step": 1, "reward": "high", "kl": NaN, "groups": null, "dropped_groups": true}\n'
        ),
        "",
    ),
    "half an evaluation": (lambda run: (run / "eval" / "after.json").write_text('{"format": 1, "rec'), "after.json"),
    "records of other kinds": (
        lambda run: (run / "eval" / "after.json").write_text(
            '{"format": 1, "label": "after", "records": [1, {"document": 3}, {"document": "d", "kind": "reading"}, '
            '{"document": "d", "kind": "recall", "step": "1"}, {"document": "d", "kind": "reading", "memory": "m", '
            '"sample": 0, "memories": [4], "cut": 1, "chunk_chars": ["a"], "reconstruction_em": "yes"}]}'
        ),
        "",
    ),
    "no summary and odd records": (
        lambda run: (
            (run / "summary.json").unlink(),
            (run / "eval" / "before.json").write_text(
                '{"format": 1, "label": "before", "records": [{"document": "d", "recall_em": "x"}]}'
            ),
        ),
        "their means are left out",
    ),
    "half a samples file": (
        lambda run: (run / "samples" / "grpo-000012.parquet").write_bytes(b"PAR1 and no more"),
        "grpo-000012.parquet is not a whole Parquet file",
    ),
    "samples of other kinds": (
        lambda run: pyarrow.parquet.write_table(
            pyarrow.table({"trajectory_id": ["a/0", None], "text": ["m", "n"], "reward": ["x", None]}),
            run / "samples" / "grpo-000012.parquet",
        ),
        "",
    ),
    "half the documents": (
        lambda run: (run / "documents" / "held_out.parquet").write_bytes(b"PAR1 and no more"), "held_out.parquet"
    ),
    "no documents": (lambda run: shutil.rmtree(run / "documents"), ""),
    "no recipe": (lambda run: (run / "recipe.json").unlink(), ""),
    "metrics alone": (
        lambda run: [shutil.rmtree(run / name) for name in ("eval", "samples", "documents")]
        + [(run / name).unlink() for name in ("recipe.json", "summary.json", "seconds.json")],
        "not finished",
    ),
    "a recipe alone": (
        lambda run: [shutil.rmtree(run / name) for name in ("eval", "samples", "documents")]
        + [(run / name).unlink() for name in ("metrics.jsonl", "summary.json", "seconds.json")],
        "not finished",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_shown_as_far_as_it_goes(kind: str, run: Path, tmp_path: Path) -> None:
    damage, said = DAMAGE[kind]
    damage(run)
    page = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    seen = Seen(page)
    assert said in "".join(text for _, text in seen.texts)
    json.loads(next(text for kind, text in seen.texts if kind == "script" and '"runs"' in text))


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        write_report([tmp_path / "none"], tmp_path / "page.html")
    with pytest.raises(UserError, match="holds no run"):
        write_report([tmp_path], tmp_path / "page.html")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing in this run can be read"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(UserError, match="name the folder of a run"):
        write_report([], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_file_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        write_report([run], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "page.html")


def test_a_comparison_stands_for_its_runs(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    for name in ("memtrain", "task"):
        shutil.copytree(made, folder / "seed-0" / name)
    zero = {"mean": 0.25, "ci95": [0.125, 0.5], "n": 40}
    row = {length: {"exact": zero, "f1": zero} for length in ("0", "400", "1600")}
    tested = {"row": "memtrain", "against": "base", "metrics": {"exact": zero}, "p": 0.031}
    data = {"primary": "exact", "rows": {"base": row, "memtrain": row}, "differences": [tested], "kind": "long"}
    (folder / "compare.json").write_text(json.dumps(data))
    page = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    plain = " ".join(text for _, text in Seen(page).texts)
    for said in ("2 runs", "1,600 tokens", "memtrain − base", "0.031", "task − memtrain"):
        assert said in plain
    shutil.rmtree(folder / "seed-0")
    assert "1,600 tokens" in write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    (folder / "compare.json").write_text("{")
    with pytest.raises(UserError, match="comparison that cannot be read"):
        write_report([folder], tmp_path / "page.html")


def test_names_tell_runs_apart() -> None:
    assert load.short_names([Path("/a/b/run"), Path("/a/c/run")]) == ["b/run", "c/run"]
    assert load.short_names([Path("/a/b/run")]) == ["run"]


def test_a_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", steps=300)
    assert write_report([run], tmp_path / "page.html").stat().st_size < 3_000_000
    loaded = load.load_run(run, "run")
    whole = memories.viewer_data([loaded])
    monkeypatch.setattr(memories, "BUDGET", 60_000)
    part = memories.viewer_data([loaded])
    assert len(json.dumps(part)) < 65_000 < len(json.dumps(whole))
    assert re.fullmatch(r"\d of 8 documents, evenly spaced", part["runs"][0]["groups"][0]["note"])
    assert part["runs"][0]["groups"][0]["documents"][-1]["id"] == "held_out-7"
    monkeypatch.setattr(memories, "BUDGET", 1_000)
    assert memories.viewer_data([loaded])["runs"][0]["groups"] == []
    assert "too long for the page" in " ".join(loaded.notes)


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report([run])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    report([run, run], tmp_path / "two" / "page.html")
    assert (tmp_path / "two" / "page.html").stat().st_size < 3_000_000
