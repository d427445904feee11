"""A MediaWiki dump repeated to any size, as Wikimedia's multistream dumps are: a stream for the head, one for every 100
pages, one for the end. Run as a script to write one: ``repeated_dump.py SOURCE.xml.bz2 TARGET.xml[.bz2] BYTES``."""

from __future__ import annotations

import bz2
import re
import sys
from pathlib import Path

PAGES = 100
_PAGE = re.compile(rb"[ \t]*<page>.*?</page>\s*?\n", re.S)


def write_repeated(source: Path, target: Path, size: int, per_stream: int = PAGES) -> int:
    """Write a dump of at least ``size`` bytes of XML; returns how many there are. ``.bz2``: multistream."""
    xml = bz2.decompress(source.read_bytes())
    pages = _PAGE.findall(xml)
    head = xml[: xml.index(pages[0])]
    compress = bz2.compress if target.suffix == ".bz2" else bytes
    known: dict[tuple[int, int], bytes] = {}
    written = len(head)
    with open(target, "wb") as handle:
        handle.write(compress(head))
        at = 0
        while written < size:
            place = (at % len(pages), per_stream)
            if place not in known:
                text = b"".join(pages[(at + i) % len(pages)] for i in range(per_stream))
                known[place] = compress(text)
            if target.suffix == ".bz2":
                written += sum(len(pages[(at + i) % len(pages)]) for i in range(per_stream))
            else:
                written += len(known[place])
            handle.write(known[place])
            at += per_stream
        handle.write(compress(b"</mediawiki>\n"))
    return written


if __name__ == "__main__":
    print(write_repeated(Path(sys.argv[1]), Path(sys.argv[2]), int(float(sys.argv[3]))))
