"""The cache folder: where it is, one writer at a time, and how a file proves that it is whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from memtrain.errors import UserError

MARKER = ".verified.json"
"""Written beside files whose sha256 was checked; holds what must still be true for that check to count."""


def cache_home() -> Path:
    """The cache folder, created: ``$MEMTRAIN_HOME``, else ``memtrain`` in the user's cache folder.

    Raises :class:`UserError` where it cannot be created or written to.
    """
    named = os.environ.get("MEMTRAIN_HOME")
    if named:
        home = Path(named).expanduser()
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memtrain"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {home} cannot be made ({error.strerror}): set MEMTRAIN_HOME to a folder you can write to"
        ) from None
    if not os.access(home, os.W_OK):
        raise UserError(f"the cache folder {home} is not writable: set MEMTRAIN_HOME to a folder you can write to")
    return home


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk under ``path`` into a :class:`UserError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UserError(
                f"{error.filename or path} cannot be written ({error.strerror}): set MEMTRAIN_HOME to a folder you can "
                "write to"
            ) from None
        raise


def disk_full(path: Path, needed: int = 0) -> UserError:
    """The error for a full disk; ``needed`` in bytes, 0 where unknown."""
    amount = f"free {needed / 1e6:,.0f} MB" if needed else "free some space"
    return UserError(f"the disk of the cache folder {path} is full: {amount} or set MEMTRAIN_HOME to another disk")


def require_space(folder: Path, needed: int) -> None:
    """Raise :class:`UserError` before a long download that cannot fit (``needed`` in bytes)."""
    if shutil.disk_usage(folder).free < needed:
        raise disk_full(folder, needed)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` + ``.lock`` exclusively, so that two processes do not fetch or convert the same thing at once.

    The lock belongs to the open file, so a process that dies lets go of it. On systems without ``fcntl`` there is no
    lock: writes are atomic anyway, the work may be done twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as handle:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_text_atomic(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def mark_verified(folder: Path, checksums: Mapping[str, str]) -> None:
    """Remember that the files of ``folder`` had these sha256 just now, with the size and time that go with them."""
    entries = {}
    for name, checksum in checksums.items():
        stat = (folder / name).stat()
        entries[name] = {"sha256": checksum, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    write_text_atomic(folder / MARKER, json.dumps(entries, indent=1))


def intact(folder: Path, expected: Mapping[str, str] | None = None) -> bool:
    """Whether every file is there and whole.

    ``expected`` maps file names to pinned sha256; None takes those that the marker remembers (files we made
    ourselves). Size and time as remembered are proof enough; otherwise the sha256 is computed and remembered anew.
    """
    try:
        marked = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        remembered = {name: (entry["sha256"], entry["size"], entry["mtime_ns"]) for name, entry in marked.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        remembered = {}
    pins = dict(expected) if expected is not None else {name: entry[0] for name, entry in remembered.items()}
    if not pins:
        return False
    stale = False
    for name, pin in pins.items():
        try:
            stat = (folder / name).stat()
        except OSError:
            return False
        if remembered.get(name) == (pin, stat.st_size, stat.st_mtime_ns):
            continue
        if sha256_of(folder / name) != pin:
            return False
        stale = True
    if stale:
        with contextlib.suppress(OSError):  # a read-only cache is checked anew each time
            mark_verified(folder, pins)
    return True
