"""Search in this process, over passages held in memory; an index may lie in a folder and be opened again.

The folder holds ``index.json`` (what it is, and of which passages), ``passages.jsonl`` and the ranker's own arrays. It
is written beside its place and renamed into it, so one that can be seen is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from memtrain.errors import UserError, first_line
from memtrain.search.base import Found, Hit
from memtrain.search.bm25 import Bm25Ranker, Ranks
from memtrain.types import Passage

FORMAT = 1
PASSAGES, ABOUT = "passages.jsonl", "index.json"
Text = tuple[str, str]
"""Title and text of a passage."""


class Ranker(Protocol):
    """Orders passages by how well they answer a query."""

    def rank(self, queries: Sequence[str], topk: int) -> list[Ranks]: ...

    def save(self, folder: Path) -> None: ...


class LocalRetriever:
    """A :class:`memtrain.search.base.Retriever` that never fails."""

    def __init__(self, passages: Sequence[Text], ranker: Ranker, kind: str) -> None:
        self.passages, self.ranker, self.kind = passages, ranker, kind
        self._searches, self._seconds = 0, 0.0

    @property
    def name(self) -> str:
        """What is searched, and how."""
        return f"{self.kind} over {len(self.passages)} passages"

    def find(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Hits of each query, best first."""
        return [
            [Hit(*self.passages[number], score) for number, score in ranks] for ranks in self.ranker.rank(queries, topk)
        ]

    async def search(self, queries: Sequence[str], topk: int) -> list[Found]:
        """See :class:`Retriever`. Runs where it is: episodes keep their order, so a run can be repeated exactly."""
        began = time.perf_counter()
        found = [Found(tuple(hits)) for hits in self.find(queries, topk)]
        self._searches += len(queries)
        self._seconds += time.perf_counter() - began
        return found

    async def check(self) -> None:
        """Nothing can be wrong."""

    def counts(self) -> dict[str, float]:
        """See :class:`Retriever`; nothing is requested of anybody."""
        return {
            "searches": self._searches,
            "failed": 0,
            "requests": 0,
            "retried": 0,
            "seconds": self._seconds,
        }

    def close(self) -> None:
        """Nothing to let go of."""


def open_index(kind: str, passages: Sequence[Passage], folder: Path | None = None) -> LocalRetriever:
    """Index passages, or open the index of a folder; ``kind`` is ``bm25`` or ``dense:MODEL``.

    Without ``folder`` nothing is written. A folder that is not there is made from the passages; one that is there is
    read, and must be of this kind and of these passages (of any, where none are given).
    Raises :class:`UserError` for no passages at all, a folder of something else or broken, a missing extra or model.
    """
    texts = _texts(passages)
    if folder is not None and folder.exists():
        return _load(kind, texts, folder)
    if not texts:
        raise UserError(
            "there is nothing to search: give passage files (a list of objects with title and text, or a question file "
            "with paragraphs)" + (f", or the folder of an index instead of {folder}" if folder else "")
        )
    made = LocalRetriever(texts, _rank(kind, texts), kind)
    if folder is not None:
        _save(made, folder)
    return made


def _texts(passages: Sequence[Passage]) -> list[Text]:
    """Distinct passages that say something, in order."""
    return list(dict.fromkeys((passage.title, passage.text) for passage in passages if passage.text.strip()))


def _whole(text: Text) -> str:
    """What is indexed: the title counts too."""
    return f"{text[0]}\n{text[1]}"


def _rank(kind: str, texts: Sequence[Text]) -> Ranker:
    name, _, model = kind.partition(":")
    if name == "dense":
        from memtrain.search.dense import DenseRanker

        return DenseRanker.of([_whole(text) for text in texts], model)
    return Bm25Ranker.of([_whole(text) for text in texts])


def _save(index: LocalRetriever, folder: Path) -> None:
    part = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    index.ranker.save(part)
    with (part / PASSAGES).open("w", encoding="utf-8") as file:
        for title, text in index.passages:
            file.write(json.dumps({"title": title, "text": text}, ensure_ascii=False) + "\n")
    about = {"format": FORMAT, "kind": index.kind, "passages": len(index.passages), "sha256": _digest(index.passages)}
    (part / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    os.replace(part, folder)


def _load(kind: str, texts: Sequence[Text], folder: Path) -> LocalRetriever:
    remedy = "remove the folder, or choose another"
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError("it was written by another version")
        if about["kind"] != kind:
            raise UserError(f"the index in {folder} is {about['kind']!r}, not {kind!r}; {remedy}")
        if texts and about["sha256"] != _digest(texts):
            raise UserError(f"the index in {folder} was made of other passages; {remedy}")
        with (folder / PASSAGES).open(encoding="utf-8") as file:
            held = [(str(record["title"]), str(record["text"])) for record in map(json.loads, file)]
        if len(held) != about["passages"]:
            raise ValueError(f"{len(held)} of {about['passages']} passages are there")
        return LocalRetriever(held, _load_ranker(kind, folder), kind)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{folder} holds no index that can be read ({first_line(error)}); {remedy}") from None


def _load_ranker(kind: str, folder: Path) -> Ranker:
    name, _, model = kind.partition(":")
    if name == "dense":
        from memtrain.search.dense import DenseRanker

        return DenseRanker.load(folder, model)
    return Bm25Ranker.load(folder)


def _digest(texts: Sequence[Text]) -> str:
    """Tells two passage sets apart."""
    digest = hashlib.sha256()
    for title, text in texts:
        digest.update(json.dumps([title, text]).encode())
    return digest.hexdigest()
