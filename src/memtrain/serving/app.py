"""The application: OpenAI's routes and the memory's, behind one gate (extra ``serve``)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from memtrain.errors import UserError

try:
    import prometheus_client  # noqa: F401
    from fastapi import FastAPI, Response, Security
    from fastapi.security import HTTPBearer
except ImportError as error:
    raise UserError(f"serving needs fastapi and prometheus_client ({error}): pip install 'memtrain[serve]'") from None

from memtrain import __version__
from memtrain.memory.chat import ChatAgent
from memtrain.serving import errors, metrics
from memtrain.serving.chat_route import chat_routes
from memtrain.serving.contract import Health
from memtrain.serving.limits import LOCAL, LOOPBACK_NAMES, Gate
from memtrain.serving.memory_route import memory_routes
from memtrain.serving.owners import Owners
from memtrain.serving.server import REFUSALS, Server
from memtrain.serving.sessions import Sessions
from memtrain.serving.store import Store, StoreError
from memtrain.settings import ServeSettings

LOG = logging.getLogger("memtrain.serving")
EXPIRY_SECONDS = 60.0
"""So often expired sessions are cleared away; nobody sees them before that either."""


def make_app(
    agents: Mapping[str, ChatAgent],
    store: Store,
    settings: ServeSettings,
    *,
    page: bool = False,
    hosts: Collection[str] = LOOPBACK_NAMES,
) -> FastAPI:
    """The application over ``agents`` by name, the first of them the default.

    ``page``: the web page of ``memtrain ui``, too. ``hosts``: names by which this server may be called; empty: any.
    """
    owners = Owners(store)
    server = Server(agents, Sessions(store, settings), settings, metrics.Metrics())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        clearing = asyncio.create_task(_expire(store))
        try:
            yield
        finally:
            clearing.cancel()
            await server.stop()

    app = FastAPI(
        title="memtrain",
        version=__version__,
        description="OpenAI's chat API with a bounded memory behind every session.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.server = server
    errors.install(app)
    key = Security(HTTPBearer(auto_error=False, description="An owner's key, where keys were given out."))
    app.include_router(chat_routes(server), dependencies=[key])
    app.include_router(memory_routes(server), dependencies=[key])

    @app.get("/health", responses=REFUSALS, tags=["server"])
    async def health() -> Health:
        """Whether the server and its store answer."""
        await asyncio.to_thread(store.count, LOCAL)
        return Health(status="ok", version=__version__, models=list(agents))

    @app.get("/metrics", response_class=Response, responses={**REFUSALS, 200: {"content": {metrics.TYPE: {}}}})
    async def prometheus() -> Response:
        """Counters for Prometheus."""

        def kept() -> int:
            return sum(store.count(owner) for owner in {LOCAL, *(row.name for row in owners.names())})

        return Response(await asyncio.to_thread(server.metrics.text, kept), media_type=metrics.TYPE)

    if page:
        from memtrain.serving.page import mount_page

        mount_page(app)
    _document(app, needs_key=owners.exist())
    app.add_middleware(Gate, settings=settings, owners=owners, metrics=server.metrics, hosts=hosts)
    return app


def _document(app: FastAPI, needs_key: bool) -> None:
    """While no keys are given out, the description of the API says that none is needed."""
    written = app.openapi

    def described() -> dict[str, Any]:
        schema = copy.deepcopy(written())
        for operation in (one for path in schema["paths"].values() for one in path.values()):
            if "security" in operation and not needs_key:
                operation["security"] = [*operation["security"], {}]
        return schema

    app.openapi = described  # type: ignore[method-assign]


async def _expire(store: Store) -> None:
    while True:
        try:
            await asyncio.to_thread(store.expire, time.time())
        except StoreError as error:  # the next request will say so, too
            LOG.error("%s", error)
        await asyncio.sleep(EXPIRY_SECONDS)
