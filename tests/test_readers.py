"""Readers: every source becomes the same stream of passages, and nothing is lost without being counted."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memtrain import assets
from memtrain.corpus.plain import blocks, detokenise
from memtrain.corpus.readers import ReadReport, read_passages
from memtrain.errors import UserError
from memtrain.recipe import CorpusSettings
from memtrain.types import Passage

LONG = "This is a sentence about one thing and another. " * 6


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Parsed dumps of the tests go to a folder of their own; built-in corpora come from the user's cache."""
    if "builtin" not in request.node.name:
        monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "cache"))


def read(source: Path | str, **options: object) -> tuple[list[Passage], ReadReport]:
    report = ReadReport()
    return list(read_passages(CorpusSettings(source=str(source), **options), report)), report  # type: ignore[arg-type]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def dump_of(*articles: tuple[str, str]) -> str:
    pages = "".join(
        f"<page><title>{title}</title><ns>0</ns><id>1</id><revision><id>2</id><text>{text}</text></revision></page>"
        for title, text in articles
    )
    return f"<mediawiki>{pages}</mediawiki>"


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"text": LONG, "title": "A"}, {"text": LONG + "\n\n" + LONG}, {"text": None}, {"title": "x"}, {"text": 3}]
    lines = [json.dumps(row) for row in rows]
    lines[1:1] = ["{broken", "[1]", ""]
    path = write(tmp_path / "rows.jsonl", "\n".join(lines))
    passages, report = read(path)
    assert [p.id for p in passages] == ["A#0", "rows.jsonl:5#0", "rows.jsonl:5#1"]
    assert [p.title for p in passages] == ["A", "", ""]
    assert passages[0].text == LONG.strip()
    assert [item.where for item in report.skipped] == [
        *("rows.jsonl: line 2", "rows.jsonl: line 3", "rows.jsonl:6", "rows.jsonl:7", "rows.jsonl:8")
    ]
    assert (report.pages, report.passages) == (2, 3)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_json_lines(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    data = (json.dumps({"text": LONG}) + "\n").encode() * 3
    passages, _ = read(write(tmp_path / f"rows.jsonl{ending}", pack(data)))
    assert len(passages) == 3


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("shape", ["array", "object"])
def test_json_documents(tmp_path: Path, shape: str, indent: int | None) -> None:
    records = [{"title": f"T{i}", "text": f"{i} {LONG}", "more": {"a": [1, {}]}} for i in range(200)]
    data: object = records if shape == "array" else {str(r["title"]): r for r in records}
    passages, report = read(write(tmp_path / "all.json", json.dumps(data, indent=indent)))
    assert [p.title for p in passages] == [f"T{i}" for i in range(200)]
    assert passages[7].text == f"7 {LONG}".strip()
    assert report.skipped == []


def test_json_document_that_ends_early(tmp_path: Path) -> None:
    text = json.dumps([{"text": LONG}, {"text": LONG}], indent=1)
    passages, report = read(write(tmp_path / "all.json", text[:-60]))
    assert len(passages) == 1
    assert report.skipped[0].where == "all.json: record 2"


def test_parquet_with_chosen_columns(tmp_path: Path) -> None:
    table = pa.table({"body": [LONG, "short", None, LONG], "name": ["A", "B", "C", "A"], "n": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "x.parquet")
    passages, report = read(tmp_path / "x.parquet", text_field="body", title_field="name")
    assert [p.id for p in passages] == ["A#0", "A (2)#0"]
    assert report.dropped == {"too short": 1}
    assert [item.where for item in report.skipped] == ["x.parquet:3"]


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
def test_missing_column_names_those_there_are(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pq.write_table(pa.table({"body": [LONG], "name": ["A"]}), tmp_path / name)
    else:
        write(tmp_path / name, json.dumps({"body": LONG, "name": "A"}))
    with pytest.raises(UserError, match=r"no column 'text': set corpus\.text_field to one of body, name"):
        read(tmp_path / name)


def test_wikiextractor(tmp_path: Path) -> None:
    text = f'<doc id="1" url="u" title="A &amp; B">\nA & B\n\n{LONG}\nHead.\n{LONG}&lt;br&gt;\n\n</doc>\n'
    open_end = f'<doc id="2" url="u" title="C">\nC\n\n{LONG}where formula_1 is.\n{LONG}'
    passages, report = read(write(tmp_path / "wiki_00", text + open_end))
    assert [p.id for p in passages] == ["A & B#0", "A & B#1", "C#0"]
    assert all(p.text == LONG.strip() for p in passages)
    assert report.dropped == {"too short": 1, "formula": 1}
    assert [item.reason for item in report.skipped] == ["truncated"]


def test_folder_with_a_mix(tmp_path: Path) -> None:
    folder = tmp_path / "mix"
    write(folder / "b" / "note.md", f"# Title\n\n{LONG}\n\n```\n{LONG}\n```\n\n- **{LONG.strip()}**\n")
    write(folder / "a.txt", f"{LONG}\n\n{LONG}")
    write(folder / "c.jsonl", json.dumps({"text": LONG}))
    write(folder / "d.xml", dump_of(("Page", f"'''It''' is [[that]]. {LONG}")))
    write(folder / "binary.txt", b"\x7fELF\0\0\1" + bytes(range(256)) * 40)
    write(folder / "latin.txt", f"{LONG}\n\ncaf\xe9 {LONG}\n".encode("latin-1"))
    write(folder / "other.json", json.dumps({"setting": 1}))
    write(folder / "picture.png", b"\x89PNG")
    write(folder / "empty.txt", b"")
    write(folder / ".hidden" / "x.txt", LONG)
    passages, report = read(folder)
    ids = ["a.txt#0", "a.txt#1", "b/note.md#0", "b/note.md#1", "c.jsonl:1#0", "Page#0", "latin.txt#0"]
    assert [p.id for p in passages] == ids
    reasons = {item.where: item.reason for item in report.skipped}
    assert reasons == {
        "binary.txt": "binary data, not text",
        "latin.txt: line 3": "not UTF-8 (byte 4)",
        "other.json": "no column 'text'; its columns are setting",
        "picture.png": "unknown kind of file (.png)",
        "empty.txt": "empty file",
    }
    assert [e.text for p in passages for e in p.entities] == ["that"]
    assert "binary.txt: binary data" in report.summary()


def test_markdown_is_stripped_lightly(tmp_path: Path) -> None:
    text = (
        "---\ntitle: x\n---\n# Head\n\nSome **bold**, *slanted* and `code` "
        'with a [link](http://a.b "t") and ![img](x.png)\n'
        "2 * 3 * 4 and snake_case_name &amp; \\* <b>tag</b>.\n\n> quoted\n> text\n\n| a | b |\n|---|---|\n\n"
        "Under\n===\n\n<!-- hidden\nstill -->\n1. first\n2. [x][ref]\n\n[ref]: http://c.d\n"
    )
    passages, _ = read(write(tmp_path / "n.md", text), min_chars=1)
    assert [p.text for p in passages] == [
        "Some bold, slanted and code with a link and 2 * 3 * 4 and snake_case_name & * tag.",
        "quoted text",
        "Under",
        "first x",
    ]
    assert passages[0].title == "n"


def test_wrapped_lines_are_one_paragraph_and_long_lines_several() -> None:
    assert list(blocks(["a", "b", "", "c"])) == ["a b", "c"]
    assert list(blocks(["History ", "x" * 200, "y" * 200])) == ["History", "x" * 200, "y" * 200]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (
            " It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 lb ) , red @-@ tipped . \n",
            "It weighs 0.7–2.2 kg (1.5 lb), red-tipped.",
        ),
        (' He said : " Go ! " , then 5 @,@ 000 left .', 'He said: "Go!", then 5,000 left.'),
        (
            " the band 's song , it isn 't at 02 : 45 ; the boys ' house",
            "the band's song, it isn't at 02:45; the boys' house",
        ),
        (" $ 5 million [ sic ] and 40 %", "$5 million [sic] and 40%"),
    ],
)
def test_wikitext_tokens(tokens: str, text: str) -> None:
    assert detokenise(tokens) == text


def test_wikitext_rows_become_articles(tmp_path: Path) -> None:
    rows = ["", " = One = \n", "", f" {LONG} , \n", " = = Head = = \n", f" {LONG}", " = Two = \n", f" {LONG}"]
    pq.write_table(pa.table({"text": rows}), tmp_path / "w.parquet")
    passages, _ = read(tmp_path / "w.parquet")
    assert [p.id for p in passages] == ["One#0", "One#1", "Two#0"]


def test_lengths_and_limits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\n".join([LONG * 10, "short", LONG]))
    passages, report = read(path, max_chars=1000)
    assert all(200 <= len(p.text) <= 1000 for p in passages)
    assert all(p.text.endswith(".") for p in passages)
    assert report.dropped["too short"] == 1
    few, _ = read(path, max_chars=1000, max_passages=2)
    assert few == passages[:2]
    with pytest.raises(UserError, match=r"corpus\.min_chars = 300 is more than corpus\.max_chars = 200"):
        read(path, min_chars=300, max_chars=200)


def test_entities_are_the_links(tmp_path: Path) -> None:
    text = f"The [[bus]]es and the [[parliament]]; [[a b|buses]], [[parliament]] again. {LONG}"
    (passage,), _ = read(write(tmp_path / "d.xml", dump_of(("P", text))))
    buses, parliament = passage.entities
    assert (buses.text, buses.aliases, len(buses.spans)) == ("buses", ("Bus", "A b"), 2)
    assert (parliament.text, parliament.aliases, parliament.kind) == ("parliament", (), "link")
    assert all(passage.text[a:b] == e.text for e in passage.entities for a, b in e.spans)


def test_parsed_dump_is_reused_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redirect = "<page><title>R</title><ns>0</ns><id>9</id><redirect title='P' /><revision><id>1</id></revision></page>"
    text = dump_of(*((f"P{i}", f"[[link]] {LONG}") for i in range(3)), ("Q", "[[a|b]] short"), ("E", ""))
    path = write(tmp_path / "d.xml", text.replace("</mediawiki>", redirect + "</mediawiki>"))
    first, report = read(path)
    parsed = list((tmp_path / "cache" / "parsed").iterdir())
    assert len(parsed) == 1
    with monkeypatch.context() as patch:
        patch.setattr("memtrain.corpus.readers.read_dump", None)  # would fail if it were read again
        second, again = read(path)
    assert second == first
    assert again == report
    assert again.aliases == {"P": ["R"]}
    parsed[0].write_bytes(parsed[0].read_bytes()[:-10])
    assert read(path)[0] == first  # a damaged file is made anew
    longer, _ = read(path, min_chars=100)
    assert len(longer) == 3
    assert len(list((tmp_path / "cache" / "parsed").iterdir())) == 2
    write(path, text.replace("P0", "New"))
    assert read(path)[0][0].title == "New"


def test_stopping_early_leaves_no_half_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "d.xml", dump_of(*((f"P{i}", LONG) for i in range(5))))
    stream = read_passages(CorpusSettings(source=str(path)), ReadReport())
    next(stream)
    stream.close()
    assert list((tmp_path / "cache" / "parsed").iterdir()) == []


def test_truncated_dump_file(tmp_path: Path) -> None:
    # Distinct numbers, so that there are several blocks to cut between.
    articles = [
        (f"P{i}", " ".join(str(j * 7919 % 1_000_003) for j in range(i * 600, i * 600 + 600))) for i in range(400)
    ]
    packed = bz2.compress(dump_of(*articles).encode(), 1)
    path = write(tmp_path / "d.xml.bz2", packed[: len(packed) * 3 // 4])
    passages, report = read(path)
    assert 100 < report.pages < 400
    assert passages[0].title == "P0"
    assert [(item.where, item.reason) for item in report.skipped] == [("d.xml.bz2", "truncated")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty", None, "it holds no text"),
        ("nopage.xml", "<mediawiki></mediawiki>", "it holds no text"),
        ("short.txt", "too short", "1 too short"),
        ("binary.txt", b"\0\1\2" * 100, "binary data, not text"),
        ("bad.parquet", "not parquet", "not readable as Parquet"),
        ("picture.png", b"\x89PNG", "unknown kind of file"),
        ("half.txt.gz", gzip.compress(LONG.encode())[:12], "truncated"),
        ("nogzip.txt.gz", LONG, "damaged"),
        ("page.xml", "<html></html>", "not a MediaWiki dump"),
    ],
)
def test_source_without_a_passage_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, says: str
) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        write(path, content)
    with pytest.raises(UserError) as error:
        read(path)
    sentence = str(error.value)
    assert all(part in sentence for part in (str(path), "corpus.source", says, "corpus.min_chars"))
    assert "\n" not in sentence


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.source = 'enwiki-sampel'.*did you mean 'enwiki-sample'\?"):
        read("enwiki-sampel")
    with pytest.raises(UserError, match="neither a file nor a folder nor a built-in"):
        read(tmp_path / "missing.txt")


def test_hub_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "memtrain\[hub\]"'):
        read("hf:wikimedia/wikipedia:20231101.en")


def test_hub_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call and its arguments; what comes back is an iterable of rows, as the library gives it."""
    datasets = pytest.importorskip("datasets")
    rows = [{"title": "A", "body": LONG}, {"title": "B", "body": LONG}]
    calls = []

    def load_dataset(*args: object, **options: object) -> object:
        calls.append((args, options))
        return datasets.IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    passages, _ = read("hf:some/set:v1", text_field="body", split="test")
    assert [p.id for p in passages] == ["A#0", "B#0"]
    assert calls == [(("some/set", "v1"), {"split": "test", "streaming": True})]
    with pytest.raises(UserError, match=r"corpus\.text_field to one of body, title"):
        read("hf:some/set:v1")


def test_progress_counts_bytes(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}.jsonl", (json.dumps({"text": LONG}) + "\n") * 50)
    seen: list[tuple[str, int, int]] = []
    settings_ = CorpusSettings(source=str(tmp_path / "in"))
    list(read_passages(settings_, ReadReport(), lambda *told: seen.append(told)))
    total = sum(file.stat().st_size for file in (tmp_path / "in").iterdir())
    assert seen[-1] == ("reading bytes", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


TEXT = st.text(st.characters(codec="utf-8"), max_size=200)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=400), st.sampled_from(["x.txt", "x.md", "x.jsonl", "x.json", "x.xml", "x.parquet", "wiki_00"])
)
def test_any_bytes_end_in_passages_or_one_sentence(tmp_path: Path, data: bytes, name: str) -> None:
    path = write(tmp_path / name, data)
    try:
        passages, report = read(path, min_chars=1)
    except UserError as error:
        sentence, passages, report = str(error), [], None
    else:
        sentence = ""
    assert "\n" not in sentence
    assert bool(sentence) != bool(passages)
    assert all(p.text.strip() == p.text != "" for p in passages)
    assert report is None or report.passages == len(passages)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, max_size=8), st.booleans())
def test_json_lines_and_documents_agree(tmp_path: Path, texts: list[str], indented: bool) -> None:
    records = [{"text": text + " end", "title": f"T{i}"} for i, text in enumerate(texts)] or [{"text": "only"}]
    lines = write(tmp_path / "x.jsonl", "\n".join(json.dumps(r) for r in records))
    whole = write(tmp_path / "x.json", json.dumps(records, indent=1 if indented else None, ensure_ascii=False))
    assert [p.text for p in read(lines, min_chars=1)[0]] == [p.text for p in read(whole, min_chars=1)[0]]


def test_builtin_default_corpus() -> None:
    """The corpus of the demo, as counted when its reader was written."""
    passages, report = read("enwiki-sample")
    assert len({p.id for p in passages}) == len(passages) == report.passages > 4000
    assert report.pages > 95
    assert sum(map(len, report.aliases.values())) == 99
    assert report.skipped == []
    assert sum(len(p.entities) for p in passages) > 17_000
    for passage in passages:
        assert 200 <= len(passage.text) <= 4000
        assert not any(
            mark in passage.text for mark in ("''", "{{", "}}", "[[", "]]", "  ", "\n", "<ref", "( ", " )", "()")
        )
        for entity in passage.entities:
            assert all(passage.text[start:end] == entity.text for start, end in entity.spans)
            assert list(entity.spans) == sorted(entity.spans)


@pytest.mark.parametrize(("name", "least"), [("enwiki-tables", 120), ("vital-articles", 9000), ("wikitext-2", 3000)])
def test_other_builtin_corpora(name: str, least: int) -> None:
    assert name in assets.CORPORA
    passages, report = read(name)
    assert len(passages) >= least
    assert report.skipped == []
