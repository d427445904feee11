"""A corpus cut into shards that can be read one by one, on any machine, to the passages that one reader would give.

Files of a folder are shared out whole, small ones together. A MediaWiki dump is cut by bytes (plain XML) or at the
streams of a multistream ``.bz2``; every other file is read by one worker, and a large one is named in the notes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memtrain.corpus import plain, readers, records
from memtrain.corpus.mediawiki import read_dump
from memtrain.corpus.page_range import PageRange, head_of, stream_start
from memtrain.corpus.pages import ReadReport
from memtrain.corpus.parsed_cache import code_checksum
from memtrain.corpus.passages import PassageCounter
from memtrain.errors import UserError
from memtrain.recipe import CorpusSettings
from memtrain.types import Passage

SHARD_BYTES = 32 << 20
"""Text of one shard, about: ten seconds of parsing."""
RATIO = 4
"""Bytes of text in a compressed byte, about."""
_COMPRESSED = (".bz2", ".gz", ".xz", ".parquet")


@dataclass(frozen=True)
class Piece:
    """Bytes ``[start, end)`` of a file, counted as they lie on the disk."""

    file: str
    start: int
    end: int
    cut: bool = False
    """A part of a dump; other files are read as a whole."""


@dataclass
class Plan:
    """Which piece of the corpus belongs to which shard. The same corpus and sizes give the same plan."""

    root: str
    """File or folder, absolute; a dataset of the hub as ``hf:NAME``."""
    shards: list[list[Piece]] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)
    """File -> what stands before its first page, for the dumps that are cut."""
    notes: list[str] = field(default_factory=list)
    """For a person: large files that one worker must read alone."""

    def sizes(self) -> list[int]:
        """Bytes of each shard on the disk."""
        return [sum(piece.end - piece.start for piece in shard) for shard in self.shards]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """What :meth:`save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        data["shards"] = [[Piece(**piece) for piece in shard] for shard in data["shards"]]
        return cls(**data)


def code_and_settings(settings: CorpusSettings, identity: dict[str, Any], shard_bytes: int) -> str:
    """16 hex digits over all that decides what the shards hold."""
    digest = hashlib.sha256(code_checksum().encode())
    for module in (plain, readers, records):
        digest.update(Path(str(module.__file__)).read_bytes())
    known = {key: identity[key] for key in ("source", "sha256")}
    decisive = [1, known, settings.model_dump(mode="json", exclude={"held_out"}), shard_bytes]
    digest.update(json.dumps(decisive, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def make_plan(settings: CorpusSettings, shard_bytes: int = SHARD_BYTES) -> Plan:
    """Cut the corpus. Raises :class:`UserError` as :func:`memtrain.corpus.readers.read_passages` does."""
    settings = readers.checked(settings)
    if settings.source.startswith("hf:"):
        note = f"{settings.source} is a stream of rows that cannot be cut: one worker reads it"
        return Plan(settings.source, [[Piece(settings.source, 0, 1)]], notes=[note])
    root = readers.resolve(settings.source).absolute()
    plan = Plan(str(root))
    waiting: list[Piece] = []
    weight = 0.0
    for file in readers.files_of(root):
        size = file.stat().st_size
        ratio = RATIO if file.suffix.lower() in _COMPRESSED else 1
        cuts, note = _cuts(file, size, shard_bytes // ratio)
        if note:
            plan.notes.append(f"{readers.place_of(file, root)} ({size / 1e6:,.0f} MB) cannot be cut: {note}")
        if cuts:
            head = head_of(file)
            if head is not None:
                plan.heads[str(file)] = head.decode("utf-8", "surrogateescape")
                plan.shards += [waiting] if waiting else []
                edges = [0, *cuts, size]
                plan.shards += [[Piece(str(file), start, end, True)] for start, end in itertools.pairwise(edges)]
                waiting, weight = [], 0.0
                continue
        waiting.append(Piece(str(file), 0, size))
        weight += size * ratio
        if weight >= shard_bytes:
            plan.shards.append(waiting)
            waiting, weight = [], 0.0
    plan.shards += [waiting] if waiting else []
    if not plan.shards:
        raise UserError(readers.no_passage(settings, ReadReport()))
    return plan


def _cuts(file: Path, size: int, step: int) -> tuple[list[int], str]:
    """Where a file may be cut, and why it cannot be where it is large."""
    if size <= step:
        return [], ""
    suffix = file.suffix.lower()
    if readers.kind_of(file) != "mediawiki":
        return [], "one worker reads it; cut it into files of a folder to share it out"
    if suffix in readers.COMPRESSED and suffix != ".bz2":
        return [], f"one worker reads it; a multistream .bz2 or plain XML can be shared out, a {suffix} cannot"
    if suffix != ".bz2":
        return list(range(step, size, step)), ""
    cuts: list[int] = []
    wanted = step
    while wanted < size and (start := stream_start(file, wanted)) is not None:
        cuts.append(start)
        wanted = max(start, wanted) + step
    note = "it is one bz2 stream, which one worker reads; take the dump named multistream, or its plain XML"
    return cuts, "" if cuts else note


def read_shard(
    plan: Plan,
    number: int,
    settings: CorpusSettings,
    counter: PassageCounter,
    told: Callable[[int], None] | None = None,
) -> Iterator[Passage]:
    """Passages of a shard, counted by ``counter``; ``told``: bytes read so far.

    Raises :class:`UserError` where the corpus is one file that lacks the text column.
    """
    settings = readers.checked(settings)
    root = Path(plan.root)
    before = 0
    for piece in plan.shards[number]:
        if counter.full and piece.start == 0:
            return  # a reader that has enough opens no other file
        if plan.root.startswith("hf:"):
            yield from readers.read_hub(settings, counter)
        elif piece.cut:
            yield from _read_piece(plan, piece, counter, told)
        else:
            progress = None if told is None else lambda what, done, total: told(done)
            yield from readers.read_file(Path(piece.file), root, settings, counter, (before, 0, progress), cached=False)
        before += piece.end - piece.start


def _read_piece(
    plan: Plan, piece: Piece, counter: PassageCounter, told: Callable[[int], None] | None
) -> Iterator[Passage]:
    file, report = Path(piece.file), counter.report
    where = f"{readers.place_of(file, Path(plan.root))} (bytes {piece.start:,} to {piece.end:,})"
    head = plan.heads[piece.file].encode("utf-8", "surrogateescape")
    try:
        handle: Any = PageRange(file, piece.start, piece.end, head, told)
        yield from counter.passages(read_dump(handle, where, report))
    except OSError as error:
        report.skip(where, f"cannot be opened: {error.strerror or error}")
