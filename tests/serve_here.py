"""A server on a free port of this machine, in a thread, for as long as a test needs it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from memtrain.addresses import listen
from memtrain.memory.chat import ChatAgent
from memtrain.serving.app import make_app
from memtrain.serving.limits import LOOPBACK_NAMES
from memtrain.serving.store import Store
from memtrain.settings import ServeSettings

MODEL = "notebook"


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of an application that answers there; it is stopped gracefully at the end."""
    door, _ = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(
            app, ws="none", log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=5
        )
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[door])), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


@contextmanager
def serving(
    agents: ChatAgent | Mapping[str, ChatAgent],
    store: Path | str,
    *,
    hosts: Collection[str] = LOOPBACK_NAMES,
    page: bool = False,
    **settings: Any,
) -> Iterator[str]:
    """A server in front of one agent, called ``notebook``, or of several; ``settings`` as in ``ServeSettings``."""
    checked = ServeSettings(**settings)
    opened = Store(str(store), keep_turns=checked.keep_turns)
    served = {MODEL: agents} if isinstance(agents, ChatAgent) else agents
    try:
        with listening(make_app(served, opened, checked, page=page, hosts=hosts)) as url:
            yield url
    finally:
        opened.close()


def until(true: Any, seconds: float = 5.0) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)
