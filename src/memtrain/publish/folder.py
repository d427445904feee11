"""The folder an export is written to: whole or not there, and never in the place of something else."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memtrain.assets.cache import sha256_of
from memtrain.errors import UserError

CHECKSUMS = "SHA256SUMS"
"""``sha256sum --check SHA256SUMS`` proves the folder; it also marks it as an export, which --overwrite may replace."""


def check_target(target: Path, overwrite: bool, keep: tuple[Path, ...]) -> None:
    """Whether an export may be written to ``target``.

    Raises :class:`UserError` where it is a file, holds something and ``overwrite`` is off, holds something that is no
    export, or is or contains one of ``keep`` (what is read).
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose another --out folder")
    for folder in keep:
        if folder.resolve().is_relative_to(target.resolve()):
            raise UserError(f"{target} holds what is to be exported ({folder}); choose another --out folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{target} is not empty; add --overwrite to replace an earlier export, or choose another --out")
    if not (target / CHECKSUMS).is_file():
        raise UserError(f"{target} is not empty and no earlier export (no {CHECKSUMS}); choose another --out folder")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder of the target's name beside it, moved into its place when everything in it is written.

    An earlier export is replaced at the end. Nothing is left of an attempt that failed; what a killed process left is
    removed by the next.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _tidy(target)
    staging = target.parent / f".partial-{target.name}-{os.getpid()}"
    part = staging / target.name
    part.mkdir(parents=True)
    try:
        yield part
        _settle(part)
        old = _old(target)
        if target.exists():
            os.replace(target, old)
        os.replace(part, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_checksums(folder: Path) -> None:
    """List the sha256 of every file in the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def _old(target: Path) -> Path:
    return target.parent / f".replaced-{target.name}"


def _tidy(target: Path) -> None:
    old = _old(target)
    if old.is_dir() and not target.exists():  # killed between the two renames: the earlier export is whole
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)
    for left in target.parent.glob(f".partial-{target.name}-*"):
        number = re.fullmatch(r"\d+", left.name.rpartition("-")[2])
        if number is None or not Path(f"/proc/{number[0]}").exists() or int(number[0]) == os.getpid():
            shutil.rmtree(left, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Files as readable as any other new file (safetensors writes private ones), and on the disk."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
