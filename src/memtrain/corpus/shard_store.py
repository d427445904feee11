"""Shards on disk: the passages as Arrow batches, what else is to be known of them as JSON.

Arrow files and not Parquet: one passage is read from 128 of them in a quarter of a millisecond either way, but a
Parquet file with groups that small takes a megabyte of memory while it is open, and a large corpus is thousands of
files. The rows are those of :mod:`memtrain.corpus.parsed_cache`; an id is that of the page in its own shard.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from memtrain.corpus.pages import ReadReport, Skipped
from memtrain.corpus.parsed_cache import SCHEMA, to_row
from memtrain.corpus.passages import PassageCounter
from memtrain.corpus.shards import Plan, read_shard
from memtrain.recipe import CorpusSettings
from memtrain.types import MASK_TOKEN, TARGET_TOKEN

ROWS = 128
"""Passages of a batch: what is read where one is wanted."""


class _ShardCounter(PassageCounter):
    """Keeps the keys of pages as they are: which are repeated is known when all shards are there."""

    def unique(self, key: str) -> str:
        return key


@dataclass
class ShardFacts:
    """What is known of a shard beside its passages."""

    report: ReadReport
    pages: list[list[Any]] = field(default_factory=list)
    """``[key, title, passages]`` of each page."""
    unusable: list[int] = field(default_factory=list)
    """Rows that spell a mask token themselves."""
    linked: int = 0
    """Usable passages with a link."""

    @classmethod
    def load(cls, path: Path) -> ShardFacts:
        """What :func:`write_shard` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        report = data.pop("report")
        report["skipped"] = [Skipped(**item) for item in report["skipped"]]
        return cls(report=ReadReport(**report), **data)


def shard_path(folder: Path, number: int) -> Path:
    """The passages of a shard; its facts lie beside it as ``.json``."""
    return folder / f"{number:05d}.arrow"


def facts_path(folder: Path, number: int) -> Path:
    """What is known of a shard. It is written last: where it is, the shard is whole."""
    return folder / f"{number:05d}.json"


def write_shard(
    plan: Plan,
    number: int,
    settings: CorpusSettings,
    folder: Path,
    told: Callable[[int], None] | None = None,
    limit: int | None = None,
) -> ShardFacts:
    """Read a shard and put its two files into ``folder``, each in one move. Raises OSError for a full disk."""
    report = ReadReport()
    facts = ShardFacts(report)
    target, last = shard_path(folder, number), facts_path(folder, number)
    mark = f".{os.uname().nodename}-{os.getpid()}.tmp"
    try:
        with (
            pa.OSFile(f"{target}{mark}", "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer,
        ):
            rows: list[dict[str, Any]] = []
            counter = _ShardCounter(settings, report, limit)
            for at, passage in enumerate(read_shard(plan, number, settings, counter, told)):
                key, _, place = passage.id.rpartition("#")
                if place == "0":
                    facts.pages.append([key, passage.title, 0])
                facts.pages[-1][2] += 1
                if MASK_TOKEN in passage.text or TARGET_TOKEN in passage.text:
                    facts.unusable.append(at)
                else:
                    facts.linked += bool(passage.entities)
                rows.append(to_row(passage))
                if len(rows) == ROWS:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
                    rows = []
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        with open(f"{last}{mark}", "w", encoding="utf-8") as handle:
            json.dump(dataclasses.asdict(facts), handle)
        os.replace(f"{target}{mark}", target)
        os.replace(f"{last}{mark}", last)
    finally:
        for path in (target, last):
            Path(f"{path}{mark}").unlink(missing_ok=True)
    return facts
