"""Addresses and ports: whom an address can be reached by, and a socket that listens there."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from memtrain.errors import UserError, first_line


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that host."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def on_this_machine(url: str) -> bool:
    """Whether an address is this machine's own: no key is needed on the way there, and no proxy."""
    return is_loopback(urlsplit(url).hostname or "")


def listen(host: str, port: int, backlog: int = 1024) -> tuple[socket.socket, str]:
    """A listening socket and its address, ``http://HOST:PORT``; port 0 takes any that is free.

    Raises :class:`UserError` where it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        door = socket.create_server((host, port), family=family, backlog=backlog)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of {host} cannot be opened ({first_line(error)}); choose another --port or --host"
        ) from None
    # asyncio sets it only where a socket names its protocol, which these do not; without it the second packet of every
    # answer waits 40 ms for the first one's acknowledgement.
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return door, f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}"
