"""From shards to one corpus: unique ids, both sides of the split, redirects; all tables on the disk.

What one reader would have counted, these shards give too: keys of pages that come up again are numbered in the order
of the corpus, and where ``corpus.max_passages`` falls inside a shard, that shard is read again up to there.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from memtrain.corpus.pages import LISTED, ReadReport
from memtrain.corpus.passages import unique_key
from memtrain.corpus.shard_store import ShardFacts, facts_path, shard_path, write_shard
from memtrain.corpus.shards import Plan
from memtrain.corpus.sides import side_of
from memtrain.corpus.whole import whole_folder
from memtrain.recipe import CorpusSettings

TABLES, FACTS, PAGES = "tables.sqlite", "facts.json", "pages.rows"
_COUNT = "INSERT INTO page VALUES (?, 1, NULL) ON CONFLICT(key) DO UPDATE SET seen = seen + 1 RETURNING seen"
_QUICK = "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;"
_SCHEMA = """
CREATE TABLE page (key TEXT PRIMARY KEY, seen INTEGER NOT NULL, number INTEGER) WITHOUT ROWID;
CREATE TABLE renamed (number INTEGER PRIMARY KEY, key TEXT NOT NULL);
CREATE TABLE alias (title TEXT, redirect TEXT, place INTEGER, PRIMARY KEY (title, redirect)) WITHOUT ROWID;
"""

Told = Callable[[int, int], None]


def rows_path(folder: Path, split: str) -> Path:
    """Rows of the passages of one side: 8-byte numbers, counted over all shards."""
    return folder / f"{split}.rows"


def join(plan: Plan, settings: CorpusSettings, shards: Path, folder: Path, told: Told) -> None:
    """Write the tables of ``folder`` from the shards in ``shards``; ``folder`` appears when they are whole.

    ``told``: shards joined, and of how many. Memory: one shard's list of pages.
    """
    with whole_folder(folder) as temporary:
        _Join(plan, settings, shards, temporary).run(told)


class _Join:
    def __init__(self, plan: Plan, settings: CorpusSettings, shards: Path, folder: Path) -> None:
        self.plan, self.settings, self.shards, self.folder = plan, settings, shards, folder
        self.report = ReadReport()
        self.files: list[str] = []
        self.starts = [0]
        self.pages = self.linked = self.aliases = 0
        self.unusable: list[int] = []
        self.counts = {"train": 0, "held_out": 0}
        self.outputs: dict[str, BinaryIO] = {}

    def run(self, told: Told) -> None:
        self.tables = sqlite3.connect(self.folder / TABLES, isolation_level=None)
        self.tables.executescript(_QUICK + _SCHEMA)
        try:
            for split in self.counts:
                self.outputs[split] = open(rows_path(self.folder, split), "wb")  # noqa: SIM115
            self.outputs[PAGES] = open(self.folder / PAGES, "wb")  # noqa: SIM115
            self.tables.execute("BEGIN")
            for number in range(len(self.plan.shards)):
                facts = self._facts(number)
                if facts is None:
                    break
                self._add(facts)
                told(number + 1, len(self.plan.shards))
            self.tables.execute("COMMIT")
        finally:
            self.tables.close()
            for output in self.outputs.values():
                output.close()
        self._save()

    def _facts(self, number: int) -> ShardFacts | None:
        """What shard ``number`` adds; None where a reader that has enough passages would not have come to it."""
        left = self.settings.max_passages - self.report.passages
        if left > 0:
            facts = ShardFacts.load(facts_path(self.shards, number))
            if facts.report.passages <= left:
                self.files.append(str(shard_path(Path("..") / self.shards.name, number)))
                return facts
        elif self.plan.shards[number][0].start == 0:
            return None
        # The reader stops in here: at the first page after the last passage.
        facts = write_shard(self.plan, number, self.settings, self.folder, limit=left)
        self.files.append(shard_path(Path(), number).name)
        return facts

    def _add(self, facts: ShardFacts) -> None:
        row = self.starts[-1]
        unusable = {row + place for place in facts.unusable}
        self.unusable += sorted(unusable)
        rows: dict[str, array[int]] = {split: array("q") for split in self.counts}
        first = array("q")
        for key, title, count in facts.pages:
            unique = unique_key(key, self._times_seen)
            if unique != key:
                self.tables.execute("INSERT INTO renamed VALUES (?, ?)", (self.pages, unique))
            self.tables.execute("UPDATE page SET number = ? WHERE key = ?", (self.pages, unique))
            side = rows[side_of(title or unique, self.settings.held_out)]
            side.extend(at for at in range(row, row + count) if at not in unusable)
            first.append(row)
            self.pages += 1
            row += count
        for split, numbers in rows.items():
            self.counts[split] += len(numbers)
            self.outputs[split].write(numbers.tobytes())
        self.outputs[PAGES].write(first.tobytes())
        self.starts.append(row)
        self.linked += facts.linked
        self._add_report(facts.report)

    def _times_seen(self, key: str) -> int:
        return int(self.tables.execute(_COUNT, (key,)).fetchone()[0])

    def _add_report(self, report: ReadReport) -> None:
        own = self.report
        own.pages += report.pages
        own.passages += report.passages
        room = LISTED - len(own.skipped)
        own.skipped_more += report.skipped_more + max(0, len(report.skipped) - room)
        own.skipped += report.skipped[:room]
        for reason, count in report.dropped.items():
            own.drop(reason, count)
        rows = []
        for title, redirects in report.aliases.items():
            for redirect in redirects:
                rows.append((title, redirect, self.aliases))
                self.aliases += 1
        self.tables.executemany("INSERT OR IGNORE INTO alias VALUES (?, ?, ?)", rows)

    def _save(self) -> None:
        with sqlite3.connect(self.folder / TABLES) as tables:
            (redirects,) = tables.execute("SELECT count(*) FROM alias").fetchone()
            (renamed,) = tables.execute("SELECT count(*) FROM renamed").fetchone()
        tables.close()
        report = {key: value for key, value in vars(self.report).items() if key not in ("aliases", "skipped")}
        facts: dict[str, Any] = {
            "files": self.files,
            "starts": self.starts,
            "pages": self.pages,
            "linked": self.linked,
            "unusable": self.unusable,
            "redirects": redirects,
            "renamed": renamed,
            "counts": self.counts,
            "report": {**report, "skipped": [vars(item) for item in self.report.skipped]},
        }
        (self.folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
