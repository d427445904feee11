"""A small corpus, its recipe, and what every training document promises: for the tests of documents and builds."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from memtrain.corpus.compose import Composer
from memtrain.corpus.counting import estimate_tokens
from memtrain.corpus.entities import make_finder
from memtrain.corpus.masking import count_occurrences, survives
from memtrain.corpus.neighbours import Bm25Neighbours
from memtrain.recipe import Recipe, parse_recipe
from memtrain.types import Passage

NAMES = ["Ada Lovelace", "Charles Babbage", "Turin", "U.S.", "$5 million", "40%", "Grace Hopper", "Konrad Zuse"]
THINGS = ["engine", "loom", "card", "wheel", "lever", "drum", "tube", "relay"]


def recipe(source: object = "corpus", **sections: dict) -> Recipe:
    data = {
        "corpus": {"source": str(source), "min_chars": 10, "held_out": 0.3, **sections.pop("corpus", {})},
        "entities": {"finder": "rules", **sections.pop("entities", {})},
        "documents": {"train": 40, "held_out": 5, "related": 2, "random": 3, **sections.pop("documents", {})},
        **sections,
    }
    return parse_recipe(data, "test")


def sentence(rng: random.Random) -> str:
    name, other = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    return f"In {rng.randint(1700, 1999)} the {thing} of {name} cost much, said {other} about the {thing}."


def composer(passages: list[Passage], settings: Recipe, finder: str = "rules") -> Composer:
    aliases: dict[str, list[str]] = {}
    made = make_finder(finder, passages, aliases)
    return Composer("train", passages, made, Bm25Neighbours(passages), settings, estimate_tokens)


def check(document, passages: dict[str, Passage], size: int) -> None:
    """Everything a training document promises."""
    assert document.text.count("[MASK]") == document.n_masks >= 1
    assert not survives(document.text, document.answer)
    assert document.pivot_id in document.passage_ids
    assert len(set(document.passage_ids)) == len(document.passage_ids) == size
    blocks = re.split(r"(?:^|\n\n)Document \d+:\n", document.text)[1:]
    assert len(blocks) == size
    assert "[MASK]" in blocks[document.passage_ids.index(document.pivot_id)]
    for name, block in zip(document.passage_ids, blocks, strict=True):
        place = 0
        for piece in block.split("[MASK]"):  # what is not masked stands there as it was, in order
            place = passages[name].text.find(piece, place) + len(piece)
            assert place >= len(piece)
        assert passages[name].text.endswith(block.rpartition("[MASK]")[2])
    texts = [mention.text for mention in document.mentions]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert count_occurrences(document.text, text)
        assert not survives(text, document.answer)
        assert not survives(document.answer, text)


def write_corpus(path: Path) -> Path:
    """30 pages of four sentences as JSONL."""
    rng = random.Random(0)
    rows = [{"title": f"Page {i}", "text": "\n\n".join(sentence(rng) for _ in range(4))} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
