"""Run the application on a port: for this machine alone unless keys were given out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from fastapi import FastAPI

from memtrain.addresses import is_loopback, listen
from memtrain.errors import UserError
from memtrain.serving.owners import Owners

STOP_SECONDS = 30
"""What is under way when the server is told to stop gets so long; what is not done then is not kept."""


def check_reach(host: str, owners: Owners) -> None:
    """Raises :class:`UserError` for an address that others reach while anybody may ask."""
    if not is_loopback(host) and not owners.exist():
        raise UserError(
            f"--host {host} can be reached from other machines, and no keys are given out: anybody could read every "
            "memory; make a key first (memtrain keys add NAME, with the same --store), or leave --host out"
        )


def run(app: FastAPI, host: str, port: int, on_start: Callable[[str], None] = lambda address: None) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then finish what is under way. ``on_start(address)`` is called once
    the port is ours.

    Raises :class:`UserError` where the port cannot be had, and for an address that others reach without keys.
    """
    import uvicorn

    check_reach(host, Owners(app.state.server.sessions.store))
    door, address = listen(host, port)
    config = uvicorn.Config(
        app,
        ws="none",  # there are no WebSockets here: who asks for one is answered as anybody
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    with door, contextlib.suppress(KeyboardInterrupt):
        on_start(address)
        uvicorn.Server(config).run(sockets=[door])
