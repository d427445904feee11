"""A small MediaWiki dump with everything that makes sharing it out hard: for the tests of builds at scale."""

from __future__ import annotations

import bz2
import random
from pathlib import Path
from xml.sax.saxutils import escape

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n  <siteinfo>\n'
    "    <sitename>Test</sitename>\n    <namespaces>\n"
    '      <namespace key="0" case="first-letter" />\n'
    '      <namespace key="6" case="first-letter">Bild</namespace>\n'
    "    </namespaces>\n  </siteinfo>\n"
)
NAMES = ["Ada Lovelace", "Charles Babbage", "Turin", "Grace Hopper", "Konrad Zuse", "Alan Turing", "Mary Somerville"]
THINGS = ["engine", "loom", "card", "wheel", "lever", "drum", "tube", "relay", "cog", "crank"]


def page(title: str, text: str, number: int, redirect: str = "", namespace: int = 0) -> str:
    """One page element."""
    moved = f'    <redirect title="{escape(redirect)}" />\n' if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>{number}</id>\n{moved}"
        f"    <revision>\n      <id>{number}</id>\n      <timestamp>2020-01-01T00:00:00Z</timestamp>\n"
        f'      <model>wikitext</model>\n      <text xml:space="preserve">{escape(text)}</text>\n'
        "    </revision>\n  </page>\n"
    )


def pages(count: int, seed: int = 0) -> list[str]:
    """Articles, redirects, other namespaces, repeated titles (and a title like a number given to one), mask tokens."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        kind = number % 10
        title = "Repeated" if kind == 3 else "Repeated (2)" if number == 25 else f"Page {number}"
        if kind == 7:
            target = rng.choice(NAMES)
            made.append(page(f"{target.split()[-1]} {number}", f"#REDIRECT [[{target}]]", number, redirect=target))
        elif kind == 8:
            made.append(page(f"Talk:{title}", "talk", number, namespace=1))
        else:
            made.append(page(title, article(rng, masked=number == 14), number))
    return made


def article(rng: random.Random, masked: bool = False) -> str:
    """Wikitext of a few paragraphs with links, a table, an infobox, a file, and one paragraph that is too short."""
    lines = ["{{Infobox person|name=[[Nobody]]|born={{birth date|1815|12|10}}}}", "[[Bild:A.jpg|thumb|By [[Nobody]]]]"]
    for _ in range(rng.randrange(2, 6)):
        one, two = rng.sample(NAMES, 2)
        thing = rng.choice(THINGS)
        text = f"In {rng.randint(1700, 1999)} the {thing} of [[{one}]] cost much, said [[{two}|{two.split()[-1]}]] "
        lines.append(text + f"about the ''{rng.choice(THINGS)}'' {{{{convert|{rng.randint(2, 90)}|km|mi}}}} away.")
    lines += ["Short.", '{| class="wikitable"\n! [[Head]]\n|-\n| {{flag|Italy}} [[Cell]]\n|}']
    if masked:
        lines.append("This one spells [MASK] by itself, which no document may hold, however long it is.")
    return "\n\n".join(lines)


def write_wiki(path: Path, count: int = 60, per_stream: int = 5, seed: int = 0) -> Path:
    """Write it as plain ``.xml`` or as multistream ``.xml.bz2``."""
    made = pages(count, seed)
    parts = [HEAD, *("".join(made[at : at + per_stream]) for at in range(0, count, per_stream)), "</mediawiki>\n"]
    compress = bz2.compress if path.suffix == ".bz2" else bytes
    path.write_bytes(b"".join(compress(part.encode()) for part in parts))
    return path
