"""Training documents: build them from a corpus, read them back, draw one again from its seed.

A build is a folder with ``train.parquet``, ``held_out.parquet`` and ``manifest.json``. The manifest is written last, so
a folder without one is not finished; a finished build of the same settings, seed and corpus is used again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from memtrain.corpus import store
from memtrain.corpus.compose import Composer
from memtrain.corpus.counting import CountTokens, TokenCounter, default_counter
from memtrain.corpus.entities import EntityFinder, make_finder, page_of
from memtrain.corpus.neighbours import make_neighbours
from memtrain.corpus.readers import ReadReport, read_passages
from memtrain.corpus.statistics import BuildReport, SplitStatistics
from memtrain.corpus.store import Documents, Split
from memtrain.errors import UserError
from memtrain.recipe import Recipe
from memtrain.types import MASK_TOKEN, TARGET_TOKEN, Passage, TrainingDocument

BUILD_VERSION = 1
"""Raise it when the same settings would give other documents: finished builds are then made anew."""
BLOCK = 32
"""Documents drawn between two reports of progress."""
SPLITS: tuple[Split, ...] = ("train", "held_out")

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``; ``total`` is 0 where it is not known."""


def build(
    recipe: Recipe,
    folder: Path,
    count_tokens: CountTokens | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Write the documents of both splits and the manifest into ``folder``; reuse a finished identical build.

    ``count_tokens``: texts -> token counts (default: the default model's tokenizer where it is cached, else an
    estimate).
    Raises :class:`UserError` for a corpus that is missing, empty or smaller than one document, for settings under which
    nothing can be hidden, and for a disk that is full.
    """
    started = time.monotonic()
    counter = _named(count_tokens)
    manifest = store.read_manifest(folder)
    identity = store.corpus_identity(recipe.corpus, manifest["corpus"] if manifest else None)
    fingerprint = build_fingerprint(recipe, identity["sha256"], counter.name)
    if manifest and manifest.get("fingerprint") == fingerprint:
        return BuildReport.from_manifest(manifest, folder, reused=True)

    tell = progress or (lambda what, done, total: None)
    read = ReadReport()
    splits, finder, unusable = _prepare(recipe, read, tell)
    composers = {split: _composer(recipe, split, splits[split], finder, counter) for split in SPLITS}
    report = BuildReport(
        folder=folder,
        corpus=recipe.corpus.source,
        pages=read.pages,
        passages=sum(map(len, splits.values())),
        unusable=unusable,
        read_summary=read.summary(),
        finder=finder.name,
        finder_limits=finder.limits(),
        tokenizer=counter.name,
        estimate=counter.estimate,
    )
    with store.writing(folder), ExitStack() as undo:
        folder.mkdir(parents=True, exist_ok=True)
        store.remove_leftovers(folder)
        writers = []
        for split in SPLITS:
            writer = store.DocumentWriter(folder, split)
            undo.callback(writer.discard)
            writers.append(writer)
            report.splits[split] = _write(composers[split], getattr(recipe.documents, split), writer, tell)
            composers.pop(split)  # what it knew of its passages is no longer needed
        report.seconds = time.monotonic() - started
        store.publish(folder, writers, _manifest(recipe, identity, fingerprint, report))
    return report


def load(folder: Path, split: Split) -> list[TrainingDocument]:
    """All documents of one split. Raises :class:`UserError` where ``folder`` holds no finished build."""
    return list(open_documents(folder, split))


def open_documents(folder: Path, split: Split) -> Documents:
    """Like :func:`load`, but reads documents from the disk when they are asked for: for builds larger than memory."""
    if store.read_manifest(folder) is None:
        raise UserError(f"{folder} holds no finished build of documents: run memtrain build first")
    return Documents(store.split_path(folder, split))


def redraw(
    recipe: Recipe, split: Split, number: int, count_tokens: CountTokens | None = None, progress: Progress | None = None
) -> TrainingDocument:
    """Draw document ``<split>-<number>`` again from the corpus, without a build.

    The same settings, corpus and seed give exactly the same document. Raises :class:`UserError` as :func:`build` does.
    """
    splits, finder, _ = _prepare(recipe, ReadReport(), progress or (lambda what, done, total: None))
    return _composer(recipe, split, splits[split], finder, _named(count_tokens)).draw_many([number])[0]


def split_passages(passages: Sequence[Passage], held_out: float) -> dict[Split, list[Passage]]:
    """Training and held-out passages; all passages of one title (of one page, where it has none) on the same side."""
    splits: dict[Split, list[Passage]] = {"train": [], "held_out": []}
    sides: dict[str, Split] = {}
    for passage in passages:
        name = passage.title or page_of(passage)
        if name not in sides:
            share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
            sides[name] = "held_out" if share < held_out else "train"
        splits[sides[name]].append(passage)
    return splits


def build_fingerprint(recipe: Recipe, corpus_sha256: str | None, counter: str) -> str:
    """16 hex digits over everything that decides what the documents are."""
    decisive: dict[str, Any] = {
        "version": BUILD_VERSION,
        "seed": recipe.seed,
        "corpus_sha256": corpus_sha256,
        "tokenizer": counter,
        **{name: getattr(recipe, name).model_dump(mode="json") for name in ("corpus", "entities", "documents")},
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _named(count_tokens: CountTokens | None) -> TokenCounter:
    if count_tokens is None:
        return default_counter()
    if isinstance(count_tokens, TokenCounter):
        return count_tokens
    return TokenCounter("custom", count_tokens)


def _prepare(recipe: Recipe, read: ReadReport, tell: Progress) -> tuple[dict[Split, list[Passage]], EntityFinder, int]:
    """Read the corpus, leave out passages that spell a mask token themselves, split by page, make the finder."""
    passages = []
    unusable = 0
    for passage in read_passages(recipe.corpus, read, tell):
        if MASK_TOKEN in passage.text or TARGET_TOKEN in passage.text:
            unusable += 1
        else:
            passages.append(passage)
    source = recipe.corpus.source
    if not passages:
        raise UserError(
            f"corpus {source} gave no passage ({read.summary()}): give a corpus with text, or lower corpus.min_chars"
        )
    splits = split_passages(passages, recipe.corpus.held_out)
    pages = len({passage.title or page_of(passage) for passage in passages})
    for split, side in splits.items():
        if not side:
            key = "raise" if split == "held_out" else "lower"
            raise UserError(
                f"corpus {source}: none of its {pages} pages falls on the {split} side (a page is never on both): "
                f"give a corpus with more pages, or {key} corpus.held_out, now {recipe.corpus.held_out}"
            )
    return splits, make_finder(recipe.entities.finder, passages, read.aliases), unusable


def _composer(
    recipe: Recipe, split: Split, passages: Sequence[Passage], finder: EntityFinder, counter: CountTokens
) -> Composer:
    empty = Composer(split, passages, finder, _NoNeighbours(), recipe, counter)
    empty.check()  # before the index is built
    empty.neighbours = make_neighbours(recipe.documents.neighbours, passages)
    return empty


class _NoNeighbours:
    """Stands in until the index is built."""

    def nearest(self, index: int, n: int) -> list[int]:
        """None."""
        return []

    def prefetch(self, indices: Sequence[int], n: int) -> None:
        """Nothing."""


def _write(composer: Composer, count: int, writer: store.DocumentWriter, tell: Progress) -> SplitStatistics:
    statistics = SplitStatistics(passages=len(composer.passages))
    what = f"documents, {composer.split}"
    started = time.monotonic()
    tell(what, 0, count)
    for start in range(0, count, BLOCK):
        for document in composer.draw_many(range(start, min(start + BLOCK, count))):
            writer.write(document)
            statistics.add(document)
        tell(what, min(start + BLOCK, count), count)
    writer.close()
    statistics.drops = dict(Counter(composer.drops).most_common())
    statistics.seconds = time.monotonic() - started
    return statistics


def _manifest(recipe: Recipe, identity: dict[str, Any], fingerprint: str, report: BuildReport) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("bm25s", "numpy", "pyarrow", "memtrain")}
    return {
        "format": BUILD_VERSION,
        "fingerprint": fingerprint,
        "seed": recipe.seed,
        "recipe": recipe.model_dump(mode="json", include={"corpus", "entities", "documents"}),
        "corpus": identity,
        "report": report.to_json(),
        "versions": {"python": platform.python_version(), **versions},
    }
