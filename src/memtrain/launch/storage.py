"""A run's folder that all machines reach: a shared file system, or an fsspec URL with a working folder on each machine.

An object store cannot rename and shows half-written folders. So ``index.json`` there lists what belongs to the run, and
is replaced when everything it names has been sent: a machine that fetches gets the last whole state or the one before.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from memtrain.assets import cache_home
from memtrain.engines.workers import ALONE, Workers
from memtrain.errors import UserError, first_line
from memtrain.rl.checkpoint import RunFolder

INDEX = "index.json"
LEFT_OUT = {".lock", ".ray"}
_URL = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)


def is_url(out: str) -> bool:
    """Whether ``--out`` names an fsspec URL (``s3://...``, ``gs://...``, ``file://...``) and not a folder."""
    return _URL.match(out) is not None


def run_folder(out: str, workers: Workers = ALONE) -> RunFolder:
    """The folder of ``--out`` as this worker uses it.

    For a URL: a working folder in the cache, brought up to date on every machine before anybody looks into it. Raises
    :class:`UserError` where the URL's file system is not installed or not reached.
    """
    if not is_url(out):
        return RunFolder(Path(out))
    store = FsspecStore(out, working_folder(out, workers.rank))
    store.fetch()
    return RunFolder(store.folder, store)


def working_folder(url: str, rank: int) -> Path:
    """Where this machine keeps its copy. Workers of one machine do not share it: each fetches for itself."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_home() / "runs" / f"{name}-{rank}"


class FsspecStore:
    """:class:`memtrain.rl.checkpoint.Store` below a URL."""

    def __init__(self, url: str, folder: Path) -> None:
        """Raises :class:`UserError` where no file system answers to the URL."""
        import fsspec

        self.url, self.folder = url.rstrip("/"), folder
        self._stamps: dict[tuple[str, int, int], str] = {}
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"--out {url} cannot be used ({first_line(error)}); install it, or name a folder") from None

    def push(self) -> None:
        """Send what is new or changed, then the index, then remove what the run has removed."""
        before = self._index()
        now = {name: self._stamp(self.folder / name) for name in _names(self.folder)}
        with _sentence(self.url):
            for name, stamp in now.items():
                if before.get(name) != stamp:
                    self.files.makedirs(self._place(name).rpartition("/")[0], exist_ok=True)
                    self.files.put_file(str(self.folder / name), self._place(name))
            self.files.makedirs(self.root, exist_ok=True)
            self.files.pipe_file(self._place(INDEX), json.dumps(now, indent=1).encode())
            for name in before.keys() - now.keys():
                self.files.rm_file(self._place(name))
            if "file" in self.files.protocol:  # object stores have no folders to be left empty
                drop_empty(Path(self.root))

    def fetch(self) -> None:
        """Make the folder what the index says; files that are there already stay."""
        index = self._index()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in _names(self.folder):
            if name not in index:
                (self.folder / name).unlink()
        with _sentence(self.url):
            for name, stamp in index.items():
                target = self.folder / name
                if not target.resolve().is_relative_to(self.folder.resolve()):
                    raise UserError(f"{self.url}/{INDEX} names {name!r}, which is no file of a run; delete it there")
                if target.exists() and self._stamp(target) == stamp:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".partial-", delete=False) as part:
                    pass
                self.files.get_file(self._place(name), part.name)
                Path(part.name).replace(target)
        drop_empty(self.folder)

    def _index(self) -> dict[str, str]:
        with _sentence(self.url):
            self.files.invalidate_cache()
            if not self.files.exists(self._place(INDEX)):
                return {}
            found = json.loads(self.files.cat_file(self._place(INDEX)))
        return {str(name): str(stamp) for name, stamp in found.items()}

    def _stamp(self, file: Path) -> str:
        """Tells a changed file: the sha256 of what is in it, reckoned once for each time it is written."""
        state = file.stat()
        key = (str(file), state.st_size, state.st_mtime_ns)
        if key not in self._stamps:
            with file.open("rb") as handle:
                self._stamps[key] = hashlib.file_digest(handle, "sha256").hexdigest()
        return self._stamps[key]

    def _place(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"


class _sentence:
    """What a file system of any make raises, as one sentence."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise UserError(
                f"{self.url} cannot be read or written ({type(error).__name__}: {first_line(error)}); check the "
                "address and its credentials, then run the same command with --resume"
            ) from error


def drop_empty(root: Path) -> None:
    """Remove folders below ``root`` in which nothing is."""
    for folder in sorted(root.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _names(folder: Path) -> list[str]:
    """Files of a run, as paths below it; checkpoints last, so that what they rely on is there before them."""
    inside = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    names = [p.as_posix() for p in inside if not any(x in LEFT_OUT or x.startswith(".partial-") for x in p.parts)]
    return sorted(names, key=lambda name: (name.startswith("checkpoints/"), name))
