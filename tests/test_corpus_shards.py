"""A corpus read shard by shard is the corpus that one reader gives."""

from __future__ import annotations

import bz2
import itertools
import json
import random
import re
from pathlib import Path

import pytest
from small_wiki import HEAD, pages, write_wiki

from memtrain.corpus import page_range
from memtrain.corpus.disk_passages import DiskCorpus, DiskLinksFinder, DiskPassages, Redirects
from memtrain.corpus.documents import split_passages
from memtrain.corpus.entities import LinksFinder
from memtrain.corpus.join import join
from memtrain.corpus.page_range import PageRange, head_of, stream_start
from memtrain.corpus.pages import ReadReport
from memtrain.corpus.readers import read_passages
from memtrain.corpus.shard_store import write_shard
from memtrain.corpus.shards import Plan, make_plan
from memtrain.errors import UserError
from memtrain.recipe import CorpusSettings
from memtrain.types import MASK_TOKEN, Passage

_PAGE = re.compile(rb"<page>.*?</page>", re.S)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "home"))


def settings(source: Path, **more: object) -> CorpusSettings:
    return CorpusSettings.model_validate({"source": str(source), "min_chars": 40, "held_out": 0.3, **more})


def by_shards(wanted: CorpusSettings, folder: Path, shard_bytes: int) -> tuple[Plan, DiskCorpus]:
    plan = make_plan(wanted, shard_bytes)
    (folder / "shards").mkdir(parents=True)
    for number in reversed(range(len(plan.shards))):  # the order of reading must not matter
        write_shard(plan, number, wanted, folder / "shards")
    join(plan, wanted, folder / "shards", folder / "corpus", lambda done, total: None)
    return plan, DiskCorpus(folder / "corpus")


def at_once(wanted: CorpusSettings) -> tuple[list[Passage], ReadReport]:
    report = ReadReport()
    return list(read_passages(wanted, report)), report


def check_same(wanted: CorpusSettings, corpus: DiskCorpus) -> list[Passage]:
    expected, report = at_once(wanted)
    assert [corpus.passage(row) for row in range(corpus.rows)] == expected
    assert len({passage.id for passage in expected}) == len(expected)
    for name in ("pages", "passages", "dropped", "skipped_more"):
        assert getattr(corpus.report, name) == getattr(report, name), name
    assert len(corpus.report.skipped) == len(report.skipped)
    aliases = Redirects(corpus)
    assert {title: list(aliases[title]) for title in report.aliases} == report.aliases
    assert len(aliases) == sum(map(len, report.aliases.values()))
    usable = [passage for passage in expected if MASK_TOKEN not in passage.text]
    assert list(DiskPassages(corpus)) == usable
    assert DiskPassages(corpus)[:: max(1, len(usable) // 7)] == usable[:: max(1, len(usable) // 7)]
    for split, side in split_passages(usable, wanted.held_out).items():
        assert list(DiskPassages(corpus, split)) == side
        assert list(DiskPassages(corpus, split).texts()) == [passage.text for passage in side]
    by_page: dict[str, list[Passage]] = {}
    for passage in usable:
        by_page.setdefault(passage.id.rpartition("#")[0], []).append(passage)
    for found in by_page.values():
        rows = [row for row in corpus.rows_of(found[-1]) if row not in corpus.unusable]
        assert [corpus.passage(row) for row in rows] == found
        texts = corpus.link_texts(corpus.rows_of(found[0]))
        assert [entity.text for passage in found for entity in passage.entities] == [
            text for row, names in zip(corpus.rows_of(found[0]), texts, strict=True) if row in rows for text in names
        ]
    lasting, finder = LinksFinder(usable, report.aliases), DiskLinksFinder(corpus)
    assert [finder.find(passage) for passage in usable] == [lasting.find(passage) for passage in usable]
    return expected


@pytest.mark.parametrize("name", ["wiki.xml", "wiki.xml.bz2"])
@pytest.mark.parametrize("shard_bytes", [4_000, 9_000, 1 << 20])
def test_a_dump_in_shards_gives_the_same_passages(tmp_path: Path, name: str, shard_bytes: int) -> None:
    wanted = settings(write_wiki(tmp_path / name))
    plan, corpus = by_shards(wanted, tmp_path / "work", shard_bytes)
    assert (len(plan.shards) > 3) == (shard_bytes < 10_000)
    expected = check_same(wanted, corpus)
    keys = {passage.id.rpartition("#")[0] for passage in expected}
    assert {"Repeated", "Repeated (2)", "Repeated (2) (2)", "Repeated (3)"} <= keys
    assert corpus.unusable


@pytest.mark.parametrize("most", [1, 2, 17, 40, 41, 42, 43, 44, 45, 90, 10_000])
def test_max_passages_falls_where_one_reader_stops(tmp_path: Path, most: int) -> None:
    folder = tmp_path / "wikis"
    folder.mkdir()
    write_wiki(folder / "a.xml.bz2", 30)
    write_wiki(folder / "b.xml", 30, seed=1)
    wanted = settings(folder, max_passages=most)
    _, corpus = by_shards(wanted, tmp_path / "work", 4_000)
    check_same(wanted, corpus)


def test_a_folder_of_many_kinds_is_shared_out_by_files(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    long = " ".join(["Ada Lovelace wrote to Charles Babbage in Turin about the engine."] * 3)
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"{long}\n\n{long} {number}\n")
    rows = [{"title": "A", "text": long}, {"no": 1}, {"text": long}]
    (folder / "deep" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "deep" / "bad.zip").write_bytes(b"PK")
    write_wiki(folder / "wiki.xml.bz2", 20)
    wanted = settings(folder)
    plan, corpus = by_shards(wanted, tmp_path / "work", 4_000)
    check_same(wanted, corpus)
    assert max(len(shard) for shard in plan.shards) > 1
    assert len(plan.shards) > 4


def test_a_damaged_shard_is_named_and_costs_nothing_but_itself(tmp_path: Path) -> None:
    file = write_wiki(tmp_path / "wiki.xml.bz2", 60, per_stream=5)
    whole, _ = at_once(settings(file))
    plan = make_plan(settings(file), 4_000)
    data = bytearray(file.read_bytes())
    middle = plan.shards[2][0]
    data[middle.start + 40] ^= 255
    file.write_bytes(data)
    plan, corpus = by_shards(settings(file), tmp_path / "work", 4_000)
    kept = [corpus.passage(row) for row in range(corpus.rows)]
    lost = {passage.text for passage in whole} - {passage.text for passage in kept}
    assert lost
    assert {passage.text for passage in kept} < {passage.text for passage in whole}
    (skipped,) = corpus.report.skipped
    assert re.fullmatch(r"wiki\.xml\.bz2 \(bytes [\d,]+ to [\d,]+\)", skipped.where)
    assert skipped.reason.startswith("damaged")
    serial, _ = at_once(settings(file))
    assert len(serial) < len(kept)  # one reader loses all that follows


def test_a_truncated_dump_says_so_once(tmp_path: Path) -> None:
    file = write_wiki(tmp_path / "wiki.xml", 60)
    text = file.read_bytes()
    file.write_bytes(text[: text.rindex(b"</page>") + 8])  # ends after a page, where nothing but the end is missing
    _, corpus = by_shards(settings(file), tmp_path / "work", 9_000)
    assert [item.reason for item in corpus.report.skipped] == ["truncated"]
    check_same(settings(file), corpus)


def test_what_cannot_be_cut_is_noted(tmp_path: Path) -> None:
    multi = write_wiki(tmp_path / "wiki.xml.bz2", 60)
    single = tmp_path / "single.xml.bz2"
    single.write_bytes(bz2.compress(bz2.decompress(multi.read_bytes())))
    plan = make_plan(settings(single), 4_000)
    assert len(plan.shards) == 1
    assert "one bz2 stream" in plan.notes[0]
    assert "multistream" in plan.notes[0]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "x" * 9_000}))
    assert "cut it into files" in make_plan(settings(rows), 4_000).notes[0]
    assert not make_plan(settings(multi), 4_000).notes
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="gives no passage"):
        make_plan(settings(tmp_path / "empty"), 4_000)


def test_pieces_cut_anywhere_own_every_page_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xml = (HEAD + "".join(pages(8)) + "</mediawiki>\n").encode()
    plain = tmp_path / "a.xml"
    plain.write_bytes(xml)
    head = head_of(plain)
    assert head == HEAD.encode() + b"  "

    def read(file: Path, cuts: list[int]) -> list[bytes]:
        found = []
        for start, end in itertools.pairwise([0, *cuts, file.stat().st_size]):
            handle = PageRange(file, start, end, head)
            text = b"".join(iter(handle.read, b""))
            assert text.count(b"<mediawiki") == text.count(b"</mediawiki>") == 1
            found += _PAGE.findall(text)
        return found

    expected = _PAGE.findall(xml)
    monkeypatch.setattr(page_range, "CHUNK", 7)
    for cut in range(len(HEAD) - 5, len(HEAD) + 700):
        assert read(plain, [cut, cut + 1, cut + 300]) == expected
    rng = random.Random(0)
    packed = tmp_path / "a.xml.bz2"
    for _ in range(40):
        edges = [0, *sorted(rng.sample(range(1, len(xml)), 12)), len(xml)]
        packed.write_bytes(b"".join(bz2.compress(xml[a:b]) for a, b in itertools.pairwise(edges)))
        starts = []
        while (start := stream_start(packed, starts[-1] + 1 if starts else 1)) is not None:
            starts.append(start)
        assert len(starts) == 12
        monkeypatch.setattr(page_range, "CHUNK", rng.choice([50, 1 << 18]))
        assert read(packed, sorted(rng.sample(starts, 4))) == expected
