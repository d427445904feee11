"""Training documents on disk: two Parquet files and a manifest, all or nothing."""

from __future__ import annotations

import bisect
import contextlib
import errno
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import pyarrow as pa
import pyarrow.parquet as pq

from memtrain.assets import corpus_path
from memtrain.errors import UserError
from memtrain.recipe import CorpusSettings
from memtrain.types import Mention, TrainingDocument

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
MANIFEST = "manifest.json"
ROWS_PER_GROUP = 16
"""Documents read at once when one of them is wanted: about 2 MB at the published size."""

_MENTION = pa.struct([("text", pa.string()), ("kind", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("answer_kind", pa.string()),
        ("aliases", pa.list_(pa.string())),
        ("pivot_id", pa.string()),
        ("passage_ids", pa.list_(pa.string())),
        ("seed", pa.int64()),
        ("n_masks", pa.int32()),
        ("n_tokens", pa.int32()),
        ("mentions", pa.list_(_MENTION)),
    ]
)


def split_path(folder: Path, split: Split) -> Path:
    """The Parquet file of one split."""
    return folder / f"{split}.parquet"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {folder} is full: free some space or choose another output folder") from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{folder} cannot be written ({error.strerror}): choose another output folder") from None
        raise


class DocumentWriter:
    """Streams documents into a temporary file beside its target; :meth:`publish` gives it the final name."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._target = split_path(folder, split)
        self._temporary = self._target.with_name(f".{self._target.name}.{os.getpid()}.tmp")
        self._writer = pq.ParquetWriter(self._temporary, SCHEMA, compression="zstd")
        self._waiting: list[dict[str, Any]] = []

    def write(self, document: TrainingDocument) -> None:
        """Append one document."""
        row = {name: getattr(document, name) for name in SCHEMA.names if name != "mentions"}
        row["mentions"] = [{"text": mention.text, "kind": mention.kind} for mention in document.mentions]
        self._waiting.append(row)
        if len(self._waiting) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=SCHEMA))
            self._waiting = []

    def close(self) -> None:
        """Write the rest and the footer; the file keeps its temporary name."""
        self._flush()
        self._writer.close()

    def publish(self) -> None:
        """Rename the closed file to its final name."""
        os.replace(self._temporary, self._target)

    def discard(self) -> None:
        """Remove what was written, unless it was published."""
        with contextlib.suppress(Exception):
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


class Documents(Sequence[TrainingDocument]):
    """The documents of one Parquet file, read row group by row group when they are asked for."""

    KEPT_GROUPS = 8

    def __init__(self, path: Path) -> None:
        """Open ``path``. Raises :class:`UserError` where it is missing or damaged."""
        try:
            self._file = pq.ParquetFile(path)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: build the documents again (memtrain build)") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): delete its folder and build it again") from None
        if not self._file.schema_arrow.equals(SCHEMA):
            raise UserError(f"{path} was not written by this version: delete its folder and build it again")
        metadata = self._file.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._kept: OrderedDict[int, list[TrainingDocument]] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> TrainingDocument: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainingDocument]: ...
    def __getitem__(self, index: int | slice) -> TrainingDocument | list[TrainingDocument]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        group = bisect.bisect_right(self._starts, index) - 1
        return self._group(group)[index - self._starts[group]]

    def __iter__(self) -> Iterator[TrainingDocument]:
        for group in range(len(self._starts) - 1):
            yield from self._group(group)

    def _group(self, group: int) -> list[TrainingDocument]:
        if group not in self._kept:
            self._kept[group] = [_document(row) for row in self._file.read_row_group(group).to_pylist()]
            if len(self._kept) > self.KEPT_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]


def _document(row: dict[str, Any]) -> TrainingDocument:
    mentions = tuple(Mention(mention["text"], mention["kind"]) for mention in row["mentions"])
    lists = {"aliases": tuple(row["aliases"]), "passage_ids": tuple(row["passage_ids"]), "mentions": mentions}
    return TrainingDocument(**{**row, **lists})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished build whose files are there at the size it states; else None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def publish(folder: Path, writers: Sequence[DocumentWriter], manifest: dict[str, Any]) -> None:
    """Give closed files their names, the manifest last: a folder with a manifest is a finished build."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for writer in writers:
        writer.publish()
    manifest["files"] = {path.name: path.stat().st_size for path in sorted(folder.glob("*.parquet"))}
    temporary = folder / f".{MANIFEST}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / MANIFEST)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of builds that were killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def corpus_identity(settings: CorpusSettings, known: dict[str, Any] | None) -> dict[str, Any]:
    """What the corpus is: files with sizes, and one sha256 over their contents (None for a hub dataset).

    ``known``: the identity in an older manifest; where sizes and times are the same its checksum is believed, so that
    a dump of many gigabytes is not read twice.
    """
    source = settings.source
    path = corpus_path(source) or Path(source).expanduser()
    if source.startswith("hf:") or not path.exists():
        return {"source": source, "sha256": None, "bytes": None, "stamp": None}
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    stamp = hashlib.sha256(repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode()).hexdigest()
    identity = {"source": source, "bytes": sum(stat.st_size for _, stat in stats), "stamp": stamp}
    if known and known.get("stamp") == stamp and known.get("source") == source and known.get("sha256"):
        return {**identity, "sha256": known["sha256"]}
    digest = hashlib.sha256()
    for (name, _), file in zip(stats, files, strict=True):
        with open(file, "rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return {**identity, "sha256": digest.hexdigest()}
