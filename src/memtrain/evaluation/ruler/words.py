"""Keys and values of needles: seven-digit numbers, word pairs, uuids (RULER section 3.1)."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Literal

Kind = Literal["numbers", "words", "uuids"]

_ADJECTIVES = """
amber ample ancient arid autumn azure bitter bleak blunt bold brave brief bright brisk broad bronze calm careful
cheerful chilly civic clever coarse cosy crisp curious daring deep dense distant dusty eager early earnest elegant
empty faint fierce fluent fond frosty gentle giant gloomy golden graceful grand hasty hollow honest humble icy idle
jolly keen kind lavish lively lofty lonely loyal lucky mellow merry mighty modest narrow noble odd pale patient
placid plain polite proud quaint quick quiet rapid rare rustic scarlet secret shallow sharp shy silent silver
slender smooth sober solemn spare stern sturdy subtle sudden sunny swift tall tender thick timid tidy tired upper
urban vague vast velvet vivid warm weary wild wise witty worthy young zealous
"""
_NOUNS = """
acorn anchor apron arrow atlas badge balcony banner barrel basket beacon bell bicycle blanket blossom bottle bowl
bridge bucket button cabin candle canyon carpet castle cedar chapel chimney clock cloud comet compass copper coral
cottage cradle crown curtain dagger desert dolphin drum engine falcon feather fern ferry fiddle flute fountain
garden gate glacier glove granite hammer harbour harvest hedge helmet hill horizon island jacket jewel kettle key
kite ladder lagoon lamp lantern leaf ledger lemon letter library lily lizard magnet maple marble market meadow
mirror mitten monument mountain needle oak oasis olive orchard otter oven owl paddle palace parcel pebble pencil
pepper piano pillow planet plum pocket pond prairie quarry quilt rabbit raft raven ribbon river rocket saddle sail
scarf shell shovel sparrow spoon statue stove tavern teapot temple thimble tower trumpet tunnel turtle umbrella
valley vase violin wagon walnut whistle willow window winter
"""
ADJECTIVES, NOUNS = tuple(_ADJECTIVES.split()), tuple(_NOUNS.split())


def number(rng: random.Random) -> str:
    """Seven digits, the first not 0."""
    return str(rng.randint(10**6, 10**7 - 1))


def word(rng: random.Random) -> str:
    """An adjective and a noun with a hyphen between them."""
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def identifier(rng: random.Random) -> str:
    """A random uuid (version 4)."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


DRAW: dict[Kind, Callable[[random.Random], str]] = {"numbers": number, "words": word, "uuids": identifier}


def different(kind: Kind, count: int, rng: random.Random) -> list[str]:
    """So many different ones, in the order they were drawn."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[DRAW[kind](rng)] = None
    return list(found)
