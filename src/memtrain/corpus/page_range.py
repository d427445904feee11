"""The pages of one piece of a MediaWiki dump, as a dump of its own.

A piece is a range of bytes on the disk. It owns the pages whose ``<page>`` starts in it, and reads on past its end to
the end of the last of them, so pieces cut anywhere give every page once. Of a ``.bz2`` dump a piece starts where one of
its streams starts (Wikimedia's multistream dumps: one stream for 100 pages), which the bytes show: no index is needed.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO

CHUNK = 1 << 18
"""Bytes read from the disk at once."""
_DECOMPRESSED = 1 << 20
"""Most bytes decompressed at once, however small they were."""
HEAD_LIMIT = 1 << 22
"""A dump's head (site information) is not longer."""
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
"""A bz2 stream that holds something: its header and the mark of its first block, ten bytes that stand inside another
stream by chance once in 10**23 bytes."""
_MARK = 10
_PAGE = re.compile(rb"<page[\s>]")
_PAGE_OR_END = re.compile(rb"<page[\s>]|</mediawiki")
_OVERLAP = 16
_CLOSING = b"</mediawiki>\n"

Told = Callable[[int], None]
"""Told how many bytes of the piece have been read from the disk."""


def stream_start(file: Path, start: int) -> int | None:
    """Where the first bz2 stream at or after byte ``start`` begins; None where there is none."""
    with open(file, "rb") as raw:
        raw.seek(start)
        position, kept = start, b""
        while data := raw.read(1 << 20):
            block = kept + data
            match = _STREAM.search(block)
            if match:
                return position - len(kept) + match.start()
            position += len(data)
            kept = block[-(_MARK - 1) :]
    return None


def head_of(file: Path) -> bytes | None:
    """What stands before the first page of a dump (``.bz2`` or plain XML); None where no page is found."""
    head = b""
    try:
        for data, _ in _chunks(file, 0, file.stat().st_size, None):
            head += data
            match = _PAGE.search(head)
            if match:
                return head[: match.start()] if b"<mediawiki" in head[: match.start()] else None
            if len(head) > HEAD_LIMIT:
                return None
    except (OSError, EOFError):
        return None
    return None


class PageRange:
    """A readable file: the pages that start in bytes ``[start, end)`` of ``file``, between a dump's head and its end.

    What damages the file raises from :meth:`read` as it does from :mod:`bz2`; a file that ends before ``end`` gives XML
    without its closing tag, so that it is told from a whole one.
    """

    def __init__(self, file: Path, start: int, end: int, head: bytes, told: Told | None = None) -> None:
        self._parts = self._bytes(_chunks(file, start, end, told), head if start else b"")
        self._first = start == 0
        self._beyond = b""
        self._over = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as many as there are at hand (``size`` is not looked at); none at the end."""
        return next(filter(None, self._parts), b"")

    def _bytes(self, chunks: Iterator[tuple[bytes, bool]], head: bytes) -> Iterator[bytes]:
        yield head
        tail = yield from self._own(chunks)
        if tail is None or (self._over and tail.rstrip().endswith(b"</page>")):
            yield _CLOSING
            return
        # Only a tag that begins beyond ends the piece: one that began inside is the piece's own.
        carried = self._beyond
        for data, _ in chunks:
            found = _PAGE_OR_END.search(carried)
            if found:
                break
            yield carried[:-_OVERLAP]
            carried = carried[-_OVERLAP:] + data
        found = _PAGE_OR_END.search(carried)
        yield carried[: found.start()] if found else carried
        yield _CLOSING if found else b""

    def _own(self, chunks: Iterator[tuple[bytes, bool]]) -> Generator[bytes, None, bytes | None]:
        """What lies inside, from its first page on; returns its last bytes, or None where no page starts in it.

        What was read beyond the piece by then is kept in ``_beyond``. At the end of the file the XML's own end is there
        (or is not), and nothing is added to it.
        """
        inside, tail, carried = self._first, b"", b""
        for data, beyond in chunks:
            if not beyond and inside:
                tail = (tail + data)[-4096:]
                yield data
            elif not beyond:
                found = _PAGE.search(carried + data)
                carried = (carried + data)[found.start() if found else -_OVERLAP :]
                if found:
                    inside, tail = True, carried[-4096:]
                    yield carried
                    carried = b""
            else:
                self._over = True
                self._beyond += data
                if inside:
                    return tail
                if len(self._beyond) >= _OVERLAP:
                    break
        if inside:
            return tail
        found = _PAGE.search(carried + self._beyond)
        if found and found.start() < len(carried):
            yield carried[found.start() :]
            return carried[found.start() :]
        return None


def _chunks(file: Path, start: int, end: int, told: Told | None) -> Iterator[tuple[bytes, bool]]:
    """Decompressed bytes from ``start`` on to the end of the file, each with whether it lies beyond ``end``."""
    with open(file, "rb") as raw:
        raw.seek(start)
        if file.suffix.lower() != ".bz2":
            position = start
            while data := raw.read(min(CHUNK, end - position) if position < end else CHUNK):
                yield data, position >= end
                position += len(data)
                if told is not None:
                    told(min(position, end) - start)
            return
        yield from _streams(raw, start, end, told)


def _streams(raw: IO[bytes], start: int, end: int, told: Told | None) -> Iterator[tuple[bytes, bool]]:
    position, waiting = start, b""
    decompressor, fresh, beyond = bz2.BZ2Decompressor(), True, start >= end
    while True:
        if not waiting and decompressor.needs_input:
            waiting = raw.read(CHUNK)
            position += len(waiting)
            if told is not None:
                told(min(position, end) - start)
            if not waiting:
                if not fresh:
                    raise EOFError("compressed file ended before its end-of-stream marker")
                return
        try:
            data = decompressor.decompress(waiting, _DECOMPRESSED)
        except OSError:
            if fresh and position - len(waiting) > start and not waiting.startswith(b"BZh"):
                return  # what follows the last stream is no stream: ignored, as by the bz2 module
            raise
        waiting, fresh = b"", False
        if data:
            yield data, beyond
        if decompressor.eof:
            waiting = decompressor.unused_data
            decompressor, fresh = bz2.BZ2Decompressor(), True
            if position - len(waiting) >= end and not beyond:
                beyond = True
                yield b"", True  # told before the next stream is touched, which may be damaged
