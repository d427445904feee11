"""What one task of a build at scale does: parse a shard, or draw a block of documents.

An executor calls a step with the number of the task; a task that is called twice does its work once. Steps know nothing
of the executor: they leave signs of life, and a sentence where they fail, in the folder of their stage.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.corpus import store
from memtrain.corpus.compose import Composer
from memtrain.corpus.counting import TokenCounter, default_counter
from memtrain.corpus.disk_index import DiskNeighbours
from memtrain.corpus.disk_passages import DiskCorpus, DiskLinksFinder, DiskPassages, Redirects
from memtrain.corpus.entities import EntityFinder, make_finder
from memtrain.corpus.shard_store import facts_path, write_shard
from memtrain.corpus.shards import Plan
from memtrain.errors import UserError
from memtrain.recipe import CorpusSettings, Recipe

WORKERS, FAILED, COUNTS = "workers", "failed", "counts"
_BEAT = 1.0
"""Seconds between two signs of life."""
DRAW_BLOCK = 64
"""Documents of one task."""
AT_ONCE = 2
"""Documents drawn together: their batches of passages are all kept, so that each is read once."""
REMEMBERED = 20_000
"""Passages of which a composer keeps what it found out: about 50 MB."""

Told = Callable[[int], None]


@dataclass
class Step:
    """A task by its number. ``folder``: of the stage; ``arguments``: plain data, other for each kind of step."""

    folder: str
    arguments: dict[str, Any]

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Called by the executor; what goes wrong is told in ``failed/`` and raised."""
        beat = _Heart(Path(self.folder), rank)
        try:
            self.work(rank, beat.told)
        except BaseException as error:
            tell_failure(Path(self.folder), str(rank), _sentence(error, Path(self.folder)))
            raise
        beat.rest()

    def work(self, rank: int, told: Told) -> None:
        """Do task ``rank``; ``told``: how much of its size is done."""
        raise NotImplementedError


class ParseStep(Step):
    """Shard ``rank`` of the plan, unless the shards before it have all the passages that are wanted."""

    def work(self, rank: int, told: Told) -> None:
        """See :class:`Step`."""
        folder = Path(self.folder)
        shards, counts = folder / "shards", folder / COUNTS
        settings = CorpusSettings.model_validate(self.arguments["settings"])
        done = [name.split(".") for name in os.listdir(counts)]
        if sum(int(count) for number, count in done if int(number) < rank) >= settings.max_passages:
            return
        if facts_path(shards, rank).exists():
            return
        facts = write_shard(_plan(str(folder / "plan.json")), rank, settings, shards, told)
        (counts / f"{rank:05d}.{facts.report.passages}").touch()


@functools.lru_cache(maxsize=1)
def _plan(path: str) -> Plan:
    return Plan.load(Path(path))


class DrawStep(Step):
    """Documents ``rank * DRAW_BLOCK`` and on of one split."""

    def work(self, rank: int, told: Told) -> None:
        """See :class:`Step`."""
        target = part_folder(Path(self.folder), rank)
        if (target / "drops.json").exists():
            return
        split, count = self.arguments["split"], self.arguments["count"]
        composer = _composer(json.dumps(self.arguments, sort_keys=True))
        composer.drops.clear()
        target.mkdir(parents=True, exist_ok=True)
        store.remove_leftovers(target)
        writer = store.DocumentWriter(target, split)
        try:
            first, last = rank * DRAW_BLOCK, min(count, (rank + 1) * DRAW_BLOCK)
            for start in range(first, last, AT_ONCE):
                for document in composer.draw_many(range(start, min(start + AT_ONCE, last))):
                    writer.write(document)
                composer.forget(REMEMBERED)
                told(start - first)
            writer.close()
            writer.publish()
        finally:
            writer.discard()
        (target / "drops.tmp").write_text(json.dumps(composer.drops))
        os.replace(target / "drops.tmp", target / "drops.json")


def part_folder(folder: Path, rank: int) -> Path:
    """Where the documents of a task wait for those before them."""
    return folder / "parts" / f"{rank:05d}"


@functools.lru_cache(maxsize=1)
def _composer(arguments: str) -> Composer:
    data = json.loads(arguments)
    counter = default_counter()
    if counter.name != data["counter"]:
        raise UserError(
            f"this worker would count tokens by {counter.name}, the build by {data['counter']}: give all workers the "
            "same MEMTRAIN_HOME with the default model in it"
        )
    return composer_on_disk(Recipe.model_validate(data["recipe"]), data["split"], Path(data["corpus"]), counter)


def composer_on_disk(recipe: Recipe, split: str, folder: Path, counter: TokenCounter) -> Composer:
    """The composer of one split of a joined corpus whose index is built."""
    corpus = DiskCorpus(folder)
    passages = DiskPassages(corpus, split)
    neighbours = DiskNeighbours(passages, index_folder(folder, split))
    return Composer(split, passages, finder_on_disk(recipe, corpus), neighbours, recipe, counter)


def finder_on_disk(recipe: Recipe, corpus: DiskCorpus) -> EntityFinder:
    """The entity finder of the recipe for a joined corpus. Raises :class:`UserError` as ``make_finder`` does."""
    return make_finder(
        recipe.entities.finder,
        DiskPassages(corpus),
        Redirects(corpus),
        linked=corpus.linked,
        links_finder=lambda: DiskLinksFinder(corpus),
    )


def index_folder(folder: Path, split: str) -> Path:
    """The index over the passages of one split of the corpus joined in ``folder``."""
    return folder.with_name(f"{folder.name}-index-{split}")


class _Heart:
    """Signs of life of this process: which task, and how much of it is done."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / WORKERS / f"{os.uname().nodename}.{os.getpid()}"
        self.rank, self.last = rank, 0.0
        self.told(0)

    def told(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last >= _BEAT:
            self.last = now
            self._write(f"{self.rank} {done}")

    def rest(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text)


def tell_failure(folder: Path, name: str, sentence: str) -> None:
    """Leave a sentence for the process that waits."""
    (folder / FAILED).mkdir(parents=True, exist_ok=True)
    (folder / FAILED / name).write_text(sentence, encoding="utf-8")


def _sentence(error: BaseException, folder: Path) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full: free some space or give another --work-folder"
    if isinstance(error, MemoryError):
        return "a worker had too little memory: give fewer --workers"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
