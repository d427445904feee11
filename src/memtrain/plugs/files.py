"""Text files that a model may ask for: below given folders only, whatever links and changes stand in the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from memtrain.errors import UserError, first_line

MOST_BYTES = 4 * 2**20
"""Longest file that is read."""


class ReadableFolders:
    """Reads UTF-8 text files below some folders.

    A name is resolved first, links and all, and must then lie below one of the folders; it is opened from that folder
    down, one part at a time and following no link, so that nothing put there in between leads out.
    """

    def __init__(self, folders: Sequence[Path], most_bytes: int = MOST_BYTES) -> None:
        """Raises :class:`UserError` for what is not a folder."""
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"--root {folder} is not a folder")
        self.folders = tuple(folder.resolve() for folder in folders)
        self.most_bytes = most_bytes

    def read(self, name: str) -> str:
        """The text of a file, named from one of the folders or absolutely.

        Raises :class:`UserError`, in the same words for what lies outside and for what is not there.
        """
        if not self.folders:
            raise UserError(
                "no folder may be read here: give the text itself, or start memtrain mcp with --root FOLDER"
            )
        refused = UserError(f"there is no readable text file {name!r} in {', '.join(map(str, self.folders))}")
        if not name or "\0" in name:
            raise refused
        for folder in self.folders:
            try:
                found = (folder / name).resolve(strict=True)
            except (OSError, RuntimeError, ValueError):  # not there, a loop of links, a name too long
                continue
            if found.is_relative_to(folder) and found != folder:
                return self._text(folder, found.relative_to(folder), name, refused)
        raise refused

    def _text(self, folder: Path, below: Path, name: str, refused: UserError) -> str:
        try:
            door = _open_below(folder, below.parts)
        except OSError:
            raise refused from None
        if not stat.S_ISREG(os.fstat(door).st_mode):
            os.close(door)
            raise refused
        with os.fdopen(door, "rb") as file:
            try:
                content = file.read(self.most_bytes + 1)
            except OSError as error:
                raise UserError(f"{name!r} cannot be read ({first_line(error)})") from None
        if len(content) > self.most_bytes:
            raise UserError(f"{name!r} is longer than {self.most_bytes} bytes: split it, or give a part of its text")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise UserError(f"{name!r} is not a text file in UTF-8")
        return text


def _open_below(folder: Path, parts: Sequence[str]) -> int:
    """A descriptor of a file; OSError where any part of the way is a link by now."""
    nofollow, nonblock = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
    if os.open not in os.supports_dir_fd:  # Windows: the name was resolved just now
        return os.open(folder.joinpath(*parts), os.O_RDONLY | getattr(os, "O_BINARY", 0))
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts[:-1]:
        try:
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | nofollow, dir_fd=place)
        finally:
            os.close(place)
        place = deeper
    try:
        return os.open(parts[-1], os.O_RDONLY | nofollow | nonblock, dir_fd=place)
    finally:
        os.close(place)
