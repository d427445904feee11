"""Run the application on a port: for this machine alone unless keys were given out."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable

from fastapi import FastAPI

from memtrain.errors import UserError, first_line
from memtrain.serving.owners import Owners

STOP_SECONDS = 30
"""What is under way when the server is told to stop gets so long; what is not done then is not kept."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reach(host: str, owners: Owners) -> None:
    """Raises :class:`UserError` for an address that others reach while anybody may ask."""
    if not is_loopback(host) and not owners.exist():
        raise UserError(
            f"--host {host} can be reached from other machines, and no keys are given out: anybody could read every "
            "memory; make a key first (memtrain keys add NAME, with the same --store), or leave --host out"
        )


def open_door(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free. Raises :class:`UserError` where it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        door = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of {host} cannot be opened ({first_line(error)}); choose another --port or --host"
        ) from None
    # asyncio sets it only where a socket names its protocol, which these do not; without it the second packet of every
    # answer waits 40 ms for the first one's acknowledgement.
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return door


def run(app: FastAPI, host: str, port: int, on_start: Callable[[str], None] = lambda address: None) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then finish what is under way. ``on_start(address)`` is called once
    the port is ours.

    Raises :class:`UserError` where the port cannot be had, and for an address that others reach without keys.
    """
    import uvicorn

    check_reach(host, Owners(app.state.server.sessions.store))
    door = open_door(host, port)
    config = uvicorn.Config(
        app,
        ws="none",  # there are no WebSockets here: who asks for one is answered as anybody
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    with door, contextlib.suppress(KeyboardInterrupt):
        on_start(f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[door])
