"""A search server of the Search-R1 contract (``contract.py``) over passages in memory (extra ``search``).

For the machine it runs on unless told otherwise: there is no log-in, and whoever reaches the port can read it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from memtrain.addresses import listen
from memtrain.errors import UserError
from memtrain.search.base import Hit
from memtrain.search.contract import PATH, TOPK, answer
from memtrain.search.local import LocalRetriever

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_BYTES = 1 << 20
"""Longest body of a request."""
MOST_QUERIES = 1024
MOST_TOPK = 100
MOST_CHARS = 10_000
"""Longest query."""


class Question(BaseModel):
    """The body of a request."""

    queries: list[str] = Field(max_length=MOST_QUERIES)
    topk: int | None = Field(None, ge=1, le=MOST_TOPK)
    return_scores: bool = False


def make_app(index: LocalRetriever) -> FastAPI:
    """The application: ``POST /retrieve`` and ``GET /health``. Raises :class:`UserError` without the extra."""
    try:
        from fastapi import FastAPI, HTTPException
        from fastapi.concurrency import run_in_threadpool
    except ImportError as error:
        raise UserError(f"a search server needs fastapi ({error}): pip install 'memtrain[search]'") from None

    app = FastAPI(title="memtrain search server", openapi_url=None)
    app.add_middleware(_ShortBodies, refusal=HTTPException(413, f"a request may have {MOST_BYTES} bytes"))

    async def retrieve(asked: Question) -> dict[str, Any]:
        if any(len(query) > MOST_CHARS for query in asked.queries):
            raise HTTPException(413, f"a query may have {MOST_CHARS} characters")
        hits: list[list[Hit]] = await run_in_threadpool(index.find, asked.queries, asked.topk or TOPK)
        return answer(hits, asked.return_scores)

    async def health() -> dict[str, Any]:
        return {"status": "ok", "passages": len(index.passages), "index": index.kind}

    app.add_api_route(PATH, retrieve, methods=["POST"])
    app.add_api_route("/health", health, methods=["GET"])
    return app


def serve(app: FastAPI, host: str, port: int, on_start: Any = lambda address: None) -> None:
    """Answer requests until Ctrl-C. ``on_start(address)`` is called once the port is ours.

    Raises :class:`UserError` where the port cannot be had.
    """
    import uvicorn

    door, address = listen(host, port)
    with door:
        on_start(address)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[door])


class _ShortBodies:
    """Stops reading a request that is longer than :data:`MOST_BYTES`, whatever it says of its length."""

    def __init__(self, app: Any, refusal: Exception) -> None:
        self.app, self.refusal = app, refusal

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        length = 0

        async def counted() -> Any:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > MOST_BYTES:
                raise self.refusal
            return message

        await self.app(scope, counted, send)
