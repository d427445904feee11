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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from memtrain.corpus import store
from memtrain.corpus.at_scale import DISK_ABOVE, ScaledBuild, may_use_disk
from memtrain.corpus.compose import Composer
from memtrain.corpus.counting import CountTokens, TokenCounter, default_counter
from memtrain.corpus.drawing import NoNeighbours, Progress, Source, check_sides, write_documents
from memtrain.corpus.entities import EntityFinder, make_finder, page_of
from memtrain.corpus.neighbours import make_neighbours
from memtrain.corpus.parallel import Crew
from memtrain.corpus.readers import ReadReport, read_passages
from memtrain.corpus.sides import side_of
from memtrain.corpus.statistics import BuildReport, SplitStatistics
from memtrain.corpus.store import SPLITS, Documents, Split
from memtrain.errors import UserError
from memtrain.recipe import Recipe
from memtrain.types import MASK_TOKEN, TARGET_TOKEN, Passage, TrainingDocument

BUILD_VERSION = 1
"""Raise it when the same settings would give other documents: finished builds are then made anew."""


def build(
    recipe: Recipe,
    folder: Path,
    count_tokens: CountTokens | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    executor: str = "local",
    work_folder: Path | None = None,
    executor_options: Mapping[str, Any] | None = None,
    shard_bytes: int = 0,
) -> BuildReport:
    """Write the documents of both splits and the manifest into ``folder``; reuse a finished identical build.

    ``count_tokens``: texts -> token counts (default: the default model's tokenizer where it is cached, else an
    estimate). ``workers``: read the corpus by so many, through datatrove's ``executor`` (``local``, ``slurm``,
    ``ray``; ``executor_options``: more of its arguments), in shards of about ``shard_bytes`` of text (0: 32 MB) that
    lie in ``work_folder`` (default: ``work`` in ``folder``); a large corpus then stays on the disk.
    Raises :class:`UserError` for a corpus that is missing, empty or smaller than one document, for settings under which
    nothing can be hidden, for a disk that is full, and for workers that fail or are killed.
    """
    started = time.monotonic()
    counter = _named(count_tokens)
    manifest = store.read_manifest(folder)
    identity = store.corpus_identity(recipe.corpus, manifest["corpus"] if manifest else None)
    fingerprint = build_fingerprint(recipe, identity["sha256"], counter.name, workers is not None)
    # What workers have built is taken by a run, too: training asks for no workers of its own.
    known = {fingerprint, build_fingerprint(recipe, identity["sha256"], counter.name, scaled=True)}
    if manifest and manifest.get("fingerprint") in known:
        return BuildReport.from_manifest(manifest, folder, reused=True)

    tell = progress or (lambda what, done, total: None)
    with ExitStack() as undo:
        if workers is None:
            source = _in_memory(recipe, counter, tell)
        else:
            work = work_folder or folder / "work"
            undo.enter_context(store.writing(work))
            crew = Crew(workers, executor, executor_options or {})
            scaled = undo.enter_context(ScaledBuild(recipe, work, identity, crew, tell, shard_bytes))
            scaled.read()
            if scaled.uses_disk():
                source = scaled.source(counter, fingerprint)
            else:
                source = _in_memory(recipe, counter, tell, scaled.passages)
            source.notes = scaled.notes
        report = BuildReport(
            folder=folder,
            corpus=recipe.corpus.source,
            pages=source.read.pages,
            passages=source.passages,
            unusable=source.unusable,
            read_summary="\n".join([source.read.summary(), *source.notes]),
            finder=source.finder.name,
            finder_limits=source.finder.limits(),
            tokenizer=counter.name,
            estimate=counter.estimate,
        )
        undo.enter_context(store.writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        store.remove_leftovers(folder)
        writers = []
        for split in SPLITS:
            writer = store.DocumentWriter(folder, split)
            undo.callback(writer.discard)
            writers.append(writer)
            report.splits[split] = source.write(split, writer)
        report.seconds = time.monotonic() - started
        store.publish(folder, writers, _manifest(recipe, identity, fingerprint, report))
        if workers is not None:
            scaled.tidy_up(fingerprint)
    return report


def _in_memory(
    recipe: Recipe,
    counter: TokenCounter,
    tell: Progress,
    stream: Callable[[ReadReport], Iterable[Passage]] | None = None,
) -> Source:
    read = ReadReport()
    splits, finder, unusable = _prepare(recipe, read, tell, stream)
    composers = {split: _composer(recipe, split, splits[split], finder, counter) for split in SPLITS}

    def write(split: Split, writer: store.DocumentWriter) -> SplitStatistics:
        composer = composers.pop(split)  # what it knew of its passages is not needed after this
        return write_documents(composer, getattr(recipe.documents, split), writer, tell)

    return Source(read, finder, sum(map(len, splits.values())), unusable, write)


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
            sides[name] = side_of(name, held_out)
        splits[sides[name]].append(passage)
    return splits


def build_fingerprint(recipe: Recipe, corpus_sha256: str | None, counter: str, scaled: bool = False) -> str:
    """16 hex digits over everything that decides what the documents are; ``scaled``: workers were given."""
    decisive: dict[str, Any] = {
        "version": BUILD_VERSION,
        "seed": recipe.seed,
        "corpus_sha256": corpus_sha256,
        "tokenizer": counter,
        **{name: getattr(recipe, name).model_dump(mode="json") for name in ("corpus", "entities", "documents")},
    }
    if scaled and may_use_disk(recipe):
        decisive["disk_above"] = DISK_ABOVE
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _named(count_tokens: CountTokens | None) -> TokenCounter:
    if count_tokens is None:
        return default_counter()
    if isinstance(count_tokens, TokenCounter):
        return count_tokens
    return TokenCounter("custom", count_tokens)


def _prepare(
    recipe: Recipe,
    read: ReadReport,
    tell: Progress,
    stream: Callable[[ReadReport], Iterable[Passage]] | None = None,
) -> tuple[dict[Split, list[Passage]], EntityFinder, int]:
    """Read the corpus, leave out passages that spell a mask token themselves, split by page, make the finder.

    ``stream``: gives the passages instead of the reader, and fills the report as it does.
    """
    passages = []
    unusable = 0
    for passage in stream(read) if stream else read_passages(recipe.corpus, read, tell):
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
    check_sides(recipe, {split: len(side) for split, side in splits.items()}, pages)
    return splits, make_finder(recipe.entities.finder, passages, read.aliases), unusable


def _composer(
    recipe: Recipe, split: Split, passages: Sequence[Passage], finder: EntityFinder, counter: CountTokens
) -> Composer:
    empty = Composer(split, passages, finder, NoNeighbours(), recipe, counter)
    empty.check()  # before the index is built
    empty.neighbours = make_neighbours(recipe.documents.neighbours, passages)
    return empty


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
