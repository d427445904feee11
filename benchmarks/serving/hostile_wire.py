"""Requests as raw bytes over a socket, so that they may be as wrong as they like, and what comes back."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h11

Headers = Sequence[tuple[str, str | bytes]]
NO_HTTP_SECONDS = 1.0
"""So long an answer is waited for to what is no HTTP: a server may as well wait for the rest of it."""


@dataclass(frozen=True)
class Shot:
    """One or more requests on a connection of their own."""

    kind: str
    pieces: tuple[bytes, ...]
    """Sent one after the other, with ``pause`` seconds between."""
    pause: float = 0.0
    requests: int = 1
    """How many of them are to be answered."""
    valid_http: bool = True
    """Whether it is HTTP; what is not may be answered by the web server with a plain 400, or not at all."""
    statuses: frozenset[int] | None = None
    """The only statuses that are right; None: any but those of a failing server."""
    hang_up: int | None = None
    """Close the connection after so many bytes of the answer."""
    reset: bool = False
    """Close it with a TCP reset."""

    @property
    def sent(self) -> bytes:
        return b"".join(self.pieces)


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool


@dataclass
class Reply:
    """What came back on a connection."""

    answers: list[Answer] = field(default_factory=list)
    raw: bytes = b""
    seconds: float = 0.0


def raw_request(
    method: str, target: str | bytes, host: str, headers: Headers = (), body: bytes | None = None, version: str = "1.1"
) -> bytes:
    """A request, not checked for anything; ``Content-Length`` is added where there is a body."""
    lines = [f"{method} ".encode("utf-8", "surrogatepass") + _bytes(target) + f" HTTP/{version}".encode()]
    if not any(name.lower() == "host" for name, _ in headers):
        lines.append(f"Host: {host}".encode())
    if not any(name.lower() == "connection" for name, _ in headers):
        lines.append(b"Connection: close")
    if body is not None and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
        lines.append(f"Content-Length: {len(body)}".encode())
    lines += [_bytes(name) + b": " + _bytes(value) for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def chunked(pieces: Sequence[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    """A body in chunks."""
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + end


def as_json(body: Any) -> bytes:
    """JSON as it may also be spelled: NaN, halves of characters."""
    return json.dumps(body).encode()


def fire(shot: Shot, address: tuple[str, int], patience: float = 30.0) -> Reply:
    """Send it and read what comes until everything is answered, the server closes, or patience ends."""
    began, reply = time.monotonic(), Reply()
    patience = patience if shot.valid_http else NO_HTTP_SECONDS
    method = shot.sent.split(b" ", 1)[0]
    with socket.create_connection(address, timeout=patience) as wire:
        with contextlib.suppress(OSError):  # the server may have closed: what it said before is still to be read
            _send(wire, shot)
        while shot.hang_up != 0 and time.monotonic() - began < patience:
            try:
                piece = wire.recv(65536)
            except OSError:
                break
            if not piece:
                break
            reply.raw += piece
            if shot.hang_up is not None and len(reply.raw) >= shot.hang_up:
                break
            if shot.hang_up is None and len(read_answers(reply.raw, method)) >= shot.requests:
                reply.answers = read_answers(reply.raw, method)
                if all(answer.complete for answer in reply.answers):
                    break
        if shot.reset:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reply.answers = read_answers(reply.raw, method)
    reply.seconds = time.monotonic() - began
    return reply


def read_answers(raw: bytes, method: bytes = b"GET") -> list[Answer]:
    """All the answers in what came back, the last one perhaps broken off."""
    answers: list[Answer] = []
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**30)
    _ask(wire, method)
    wire.receive_data(raw)
    try:
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return answers
            if isinstance(event, h11.Response):
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
                answers.append(Answer(event.status_code, headers, b"", False))
            elif isinstance(event, h11.Data):
                answers[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                answers[-1].complete = True
                if wire.our_state is not h11.DONE or wire.their_state is not h11.DONE:
                    return answers
                wire.start_next_cycle()
                _ask(wire, b"GET")
    except h11.RemoteProtocolError:
        return answers


def _ask(wire: h11.Connection, method: bytes) -> None:
    known = method if method in (b"GET", b"HEAD", b"CONNECT") else b"POST"
    wire.send(h11.Request(method=known, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    wire.send(h11.EndOfMessage())


def _send(wire: socket.socket, shot: Shot) -> None:
    for number, piece in enumerate(shot.pieces):
        if number and shot.pause:
            time.sleep(shot.pause)
        if len(piece) < 2**16:
            wire.sendall(piece)
            continue
        # Who refuses a long body answers before its end: stop sending then, as clients do, and read the answer.
        view = memoryview(piece)
        while view:
            readable, writable, _ = select.select([wire], [wire], [], 30)
            if readable or not writable:
                return
            view = view[wire.send(view[: 2**16]) :]


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
