"""The contract of Search-R1's retrieval servers (arXiv 2503.09516, released code), both ways.

``POST /retrieve {"queries": [...], "topk": 3, "return_scores": true}`` answers ``{"result": [[{"document":
{"contents": "\\"Title\\"\\ntext"}, "score": 1.0}, ...], ...]}``, one list a query; without ``return_scores`` the
documents stand bare. The first line of ``contents`` is the title, in quotation marks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from memtrain.search.base import Found, Hit

PATH = "/retrieve"
TOPK = 3
"""What a question without ``topk`` gets."""
MOST_QUERIES = 64
"""Queries the client puts into one request."""
MOST_CHARS = 50_000
"""What is kept of one passage: results are cut to far less anyway."""


class Unanswered(Exception):
    """A request that gave nothing; ``final`` where another try would fail in the same way."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def question(queries: Sequence[str], topk: int) -> dict[str, Any]:
    """The body of a request."""
    return {"queries": list(queries), "topk": topk, "return_scores": True}


def answer(hits: Sequence[Sequence[Hit]], scores: bool) -> dict[str, Any]:
    """The body of an answer, one list a query."""
    return {
        "result": [
            [{"document": _document(hit), "score": hit.score} if scores else _document(hit) for hit in found]
            for found in hits
        ]
    }


def read_answer(body: bytes, n: int, topk: int) -> list[Found]:
    """The hits of ``n`` queries. Raises :class:`Unanswered` for anything but one list of documents a query."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Unanswered("the answer is not JSON") from None
    lists = content.get("result") if isinstance(content, dict) else None
    if not isinstance(lists, list) or not all(isinstance(hits, list) for hits in lists):
        raise Unanswered('the answer has no lists of documents under "result"')
    if len(lists) != n:
        raise Unanswered(f"{len(lists)} result lists for {n} queries")
    return [Found(tuple(_hit(item) for item in hits[:topk])) for hits in lists]


def endpoint(url: str) -> str:
    """The address that questions go to: ``url`` with or without the path."""
    parts = urlsplit(url.strip())
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(PATH) else path + PATH))


def without_secrets(url: str) -> str:
    """The address as it may be shown: a user's name and password left out."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _document(hit: Hit) -> dict[str, str]:
    return {"contents": f'"{hit.title}"\n{hit.text}'}


def _hit(item: Any) -> Hit:
    document = item.get("document", item) if isinstance(item, dict) else None
    if not isinstance(document, dict):
        raise Unanswered("a result is not a document")
    contents, title, text = document.get("contents"), document.get("title", ""), document.get("text")
    if isinstance(contents, str):
        title, _, text = contents.partition("\n")
        title = title.strip()
        if len(title) > 1 and title[0] == title[-1] == '"':
            title = title[1:-1]
    if not isinstance(text, str) or not isinstance(title, str):
        raise Unanswered('a document has no "contents"')
    return Hit(_clean(title), _clean(text.strip()), _number(item.get("score")))


def _clean(text: str) -> str:
    """JSON may spell halves of characters, which no tokenizer takes."""
    return text[:MOST_CHARS].encode("utf-8", "replace").decode("utf-8")


def _number(score: Any) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0
