"""A build by many workers: shards, one corpus from them on the disk, its index, its documents.

Everything between corpus and documents lies in a work folder, so that a build that was killed goes on where it stopped,
and another build of the same corpus begins with the drawing. The passages are those that one reader gives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from memtrain.corpus import readers, steps, store
from memtrain.corpus.compose import Composer
from memtrain.corpus.counting import TokenCounter, default_counter
from memtrain.corpus.disk_index import build_index
from memtrain.corpus.disk_passages import DiskCorpus, DiskPassages
from memtrain.corpus.drawing import NoNeighbours, Progress, Source, check_sides, write_documents
from memtrain.corpus.join import TABLES, join
from memtrain.corpus.pages import ReadReport
from memtrain.corpus.parallel import Crew, Stage
from memtrain.corpus.shards import SHARD_BYTES, Plan, code_and_settings, make_plan
from memtrain.corpus.statistics import SplitStatistics
from memtrain.corpus.store import SPLITS, Split
from memtrain.errors import UserError
from memtrain.recipe import Recipe
from memtrain.types import Passage

DISK_ABOVE = 300_000
"""Passages above which ``documents.neighbours = "bm25"`` means the index on the disk, where workers are given."""


def may_use_disk(recipe: Recipe) -> bool:
    """Whether a large corpus would be built with another index than this recipe names."""
    return recipe.documents.neighbours == "bm25" and recipe.corpus.max_passages > DISK_ABOVE


class ScaledBuild:
    """One build. Use as a context: two builds must not share a work folder at the same time."""

    def __init__(
        self, recipe: Recipe, work: Path, identity: dict[str, Any], crew: Crew, tell: Progress, shard_bytes: int
    ) -> None:
        crew.check()
        self.recipe, self.crew, self.tell = recipe, crew, tell
        self.shard_bytes = shard_bytes or SHARD_BYTES
        key = code_and_settings(recipe.corpus, identity, self.shard_bytes)
        self.work = work.absolute() / key
        self.corpus: DiskCorpus
        self.notes: list[str] = []

    def __enter__(self) -> ScaledBuild:
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.work / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            sentence = f"another build is at work in {self.work}: wait for it or give another --work-folder"
            raise UserError(sentence) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def read(self) -> None:
        """Shards, then one corpus of them. Raises :class:`UserError` as ``read_passages``, and where workers fail."""
        settings = self.recipe.corpus
        parse = self.work / "parse"
        for name in ("shards", steps.COUNTS):
            (parse / name).mkdir(parents=True, exist_ok=True)
        plan = self._plan(parse / "plan.json")
        self.notes = plan.notes
        arguments = {"settings": settings.model_dump(mode="json")}
        Stage("parse", parse, arguments, plan.sizes(), "reading bytes").run(self.crew, self.tell)
        self.joined = parse / f"corpus-{settings.held_out}"
        if not self.joined.exists():
            join(plan, settings, parse / "shards", self.joined, partial(self.tell, "joining shards"))
        self.corpus = DiskCorpus(self.joined)
        if not self.corpus.report.passages:
            raise UserError(readers.no_passage(settings, self.corpus.report))

    def _plan(self, path: Path) -> Plan:
        if path.exists():
            return Plan.load(path)
        plan = make_plan(self.recipe.corpus, self.shard_bytes)
        plan.save(path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        return plan

    def uses_disk(self) -> bool:
        """Whether passages and index stay on the disk."""
        spec = self.recipe.documents.neighbours
        return spec == "bm25-disk" or (spec == "bm25" and self.corpus.report.passages > DISK_ABOVE)

    def passages(self, read: ReadReport) -> Iterator[Passage]:
        """All passages in the order of the corpus, as ``read_passages`` gives them; fills ``read``."""
        vars(read).update(vars(self.corpus.report))
        with contextlib.closing(sqlite3.connect(self.joined / TABLES)) as tables:
            for title, redirect in tables.execute("SELECT title, redirect FROM alias ORDER BY place"):
                read.add_alias(title, redirect)
        yield from map(self.corpus.passage, range(self.corpus.rows))

    def source(self, counter: TokenCounter, fingerprint: str) -> Source:
        """Passages, index and finder on the disk. Raises :class:`UserError` for a split smaller than one document."""
        recipe, corpus = self.recipe, self.corpus
        finder = steps.finder_on_disk(recipe, corpus)
        splits = {split: DiskPassages(corpus, split) for split in SPLITS}
        check_sides(recipe, {split: len(side) for split, side in splits.items()}, corpus.pages)
        for split, side in splits.items():
            Composer(split, side, finder, NoNeighbours(), recipe, counter).check()
        for split, side in splits.items():
            told = partial(self._indexed, split, len(side))
            build_index(side.texts(), steps.index_folder(self.joined, split), told)

        def write(split: Split, writer: store.DocumentWriter) -> SplitStatistics:
            count = getattr(recipe.documents, split)
            if count > steps.DRAW_BLOCK and counter.name == default_counter().name:
                return self._draw(split, fingerprint, counter, writer)
            # One task is done sooner than workers are there, and a function cannot be given to them.
            composer = steps.composer_on_disk(recipe, split, corpus.folder, counter)
            return write_documents(composer, count, writer, self.tell, steps.REMEMBERED)

        passages = sum(map(len, splits.values()))
        return Source(corpus.summary_report(), finder, passages, len(corpus.unusable), write)

    def _indexed(self, split: Split, total: int, done: int) -> None:
        self.tell(f"indexing passages, {split}", done, total)

    def _draw(
        self, split: Split, fingerprint: str, counter: TokenCounter, writer: store.DocumentWriter
    ) -> SplitStatistics:
        """By the workers; their documents are put, in order, into ``writer``."""
        started = time.monotonic()
        count = getattr(self.recipe.documents, split)
        folder = self.work / f"draw-{fingerprint}-{split}"
        folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            "recipe": self.recipe.model_dump(mode="json"),
            "split": split,
            "count": count,
            "corpus": str(self.joined),
            "counter": counter.name,
        }
        sizes = [min(steps.DRAW_BLOCK, count - start) for start in range(0, count, steps.DRAW_BLOCK)]
        Stage("draw", folder, arguments, sizes, f"documents, {split}").run(self.crew, self.tell)
        statistics = SplitStatistics(passages=len(DiskPassages(self.corpus, split)))
        drops: Counter[str] = Counter()
        for rank in range(len(sizes)):
            part = steps.part_folder(folder, rank)
            drops.update(json.loads((part / "drops.json").read_text()))
            for document in store.Documents(store.split_path(part, split)):
                writer.write(document)
                statistics.add(document)
        writer.close()
        statistics.drops = dict(drops.most_common())
        statistics.seconds = time.monotonic() - started
        return statistics

    def tidy_up(self, fingerprint: str) -> None:
        """Delete the parts of documents that are published."""
        for folder in self.work.glob(f"draw-{fingerprint}-*"):
            shutil.rmtree(folder, ignore_errors=True)
