"""What goes over the wire to ``memtrain serve``, and what comes back: requests, answers, errors. Sends nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from memtrain.addresses import on_this_machine
from memtrain.errors import UserError, first_line

DEFAULT_URL = "http://127.0.0.1:8080"
"""Where ``memtrain serve`` listens unless told otherwise."""
TIMEOUT = 1800.0
"""Seconds to wait for an answer: a long text is read piece by piece."""
CONNECT_TIMEOUT = 10.0
"""Seconds to wait for the server to take the connection."""
PAGE = 100
"""Sessions asked for at a time."""

_BLANK = re.compile(r"[\s\x00-\x20\x7f]")
SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
"""What a session may be called."""


class Refused(UserError):
    """The server answered, and said no."""

    def __init__(self, sentence: str, status: int, wait_seconds: float | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        """HTTP status: 401 key, 404 no such session, 409 the session has moved on, 413 too long, 429 too many."""
        self.wait_seconds = wait_seconds
        """Seconds after which to ask again, where the server says so (429, 503)."""


@dataclass(frozen=True)
class Session:
    """What the server keeps of one session."""

    session_id: str
    """Its name."""
    turn: int
    """How often it has changed; given back as ``turn`` with an edit it keeps two editors apart."""
    created: float
    """Seconds since the epoch, UTC."""
    updated: float
    """Seconds since the epoch, UTC."""
    expires: float | None = None
    """When it is forgotten, seconds since the epoch; None: never."""
    memory: str = ""
    """The memory; empty in a list, which says only how long it is."""
    memory_chars: int = 0
    """Length of the memory in characters; 0 where the memory itself is given."""
    model: str = ""
    """Which model wrote it; empty in a list."""
    recent: tuple[Mapping[str, str], ...] = ()
    """The last messages, each with role and content; empty in a list."""


@dataclass(frozen=True)
class Remembered:
    """A text has been read into the memory of a session."""

    session_id: str
    """The session, made where it was not there."""
    turn: int
    """Its turn now."""
    memory: str
    """Its memory now."""
    chunks: int = 0
    """In how many pieces the text was read."""


@dataclass(frozen=True)
class Answer:
    """An answer from the memory alone."""

    answer: str
    """What the model said."""
    session_id: str
    """The session."""
    turn: int
    """The turn whose memory was asked."""


@dataclass(frozen=True)
class Reading:
    """How far a long text is read."""

    chunk: int
    """Counted from 1."""
    chunks: int
    memory: str
    """After the chunk."""


class Asked(NamedTuple):
    """One request, before it is sent."""

    method: str
    path: str
    body: Any = None
    params: Mapping[str, Any] | None = None


T = TypeVar("T")


class Wire:
    """What both clients share: settings, requests, and what is made of answers."""

    def __init__(self, url: str, key: str = "", timeout: float = TIMEOUT) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(self.url)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not _BLANK.search(url)
        except ValueError:  # brackets without end, a port that is no number
            fine = False
        if not fine:
            raise UserError(f"{url!r} is not the address of a server; give one such as {DEFAULT_URL}")
        self._key = key.strip()
        if not self._key.isascii() or _BLANK.search(self._key):
            raise UserError("the key given is none: keys are one line of letters, digits and signs, without blanks")
        self._settings: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {self._key}"} if self._key else {},
            "timeout": http().Timeout(timeout, connect=CONNECT_TIMEOUT),
            "trust_env": not on_this_machine(self.url),  # a proxy named by the environment is for other machines
        }

    def _lost(self, error: Exception) -> UserError:
        """What a failed connection means to the user."""
        if isinstance(error, http().TimeoutException):
            return UserError(f"{self.url} did not answer in time; see its log, or allow more with timeout=")
        if isinstance(error, http().ConnectError):
            return UserError(
                f"no server answers at {self.url}; start one with: memtrain serve, or give another address"
            )
        return UserError(f"the connection to {self.url} was lost ({first_line(error)}); see the server's log")

    def _check(self, response: Any) -> None:
        """Raise :class:`Refused` unless the (read) response is a success."""
        if response.is_success:
            return
        status, said = response.status_code, _said(response.content)
        wait = _seconds(response.headers.get("retry-after"))
        if status == 401:
            hint = "the key is not one of its owners'" if self._key else "it wants a key, and none was given"
            sentence = f"{self.url} refuses: {hint}; make one beside it with: memtrain keys add NAME"
        elif status in (429, 503):
            again = f"ask again in {wait:g} s" if wait is not None else "ask again later"
            sentence = f"{self.url} has too much to do ({said or f'status {status}'}); {again}"
        else:
            sentence = f"{self.url} refuses: {said or f'HTTP status {status}'}"
        raise Refused(sentence, status, wait)

    def _json(self, response: Any) -> dict[str, Any]:
        self._check(response)
        return self._object(response.content)

    def _object(self, text: str | bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._stranger("what it says is not a JSON object")
        return found

    def _made(self, kind: type[T], found: Any) -> T:
        """A dataclass of what an answer holds; fields that a newer server adds are left alone."""
        try:
            return TypeAdapter(kind).validate_python(found)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its answer"
            raise self._stranger(f"{where}: {error.errors()[0]['msg'].lower()}") from None

    def _stranger(self, why: str) -> UserError:
        return UserError(f"{self.url} is no memtrain server, or another version: {why}")

    def _event(self, text: str) -> Reading | Remembered | None:
        """What one event of a stream says: progress, the end, or nothing."""
        if text == "[DONE]":
            return None
        event = self._object(text)
        if "error" in event:
            raise Refused(f"{self.url} gave up: {_said(text.encode()) or 'no reason given'}", 500)
        if event.get("event") == "reading":
            return self._made(Reading, event)
        return self._made(Remembered, event) if event.get("event") == "memory" else None

    def _unfinished(self) -> UserError:
        return UserError(f"{self.url} ended its answer before the text was read; nothing was kept, try again")

    def _sessions(self, found: Mapping[str, Any]) -> tuple[list[Session], bool]:
        data = found.get("data")
        if not isinstance(data, list):
            raise self._stranger("its list of sessions is none")
        return [self._made(Session, one) for one in data], bool(found.get("has_more"))

    # ---- requests ----

    @staticmethod
    def place(session: str, *more: str) -> str:
        """The path of a session. Raises :class:`UserError` for what cannot name one."""
        if not SESSION.fullmatch(session):
            raise UserError(
                f"{session!r} cannot name a session: up to 128 of A-Z a-z 0-9 . _ : @ -, a letter or digit first"
            )
        return "/".join(("/v1/memory", session, *more))

    def _read(self, session: str, text: str, question: str) -> Asked:
        body = {"text": text, "stream": True} | ({"question": question} if question else {})
        return Asked("POST", self.place(session, "read"), body)

    def _edit(
        self, session: str, memory: str | None, expires_in: float | EllipsisType | None, turn: int | None
    ) -> Asked:
        body: dict[str, Any] = {} if memory is None else {"memory": memory}
        body |= {} if expires_in is ... else {"expires_in": expires_in}
        return Asked("PUT", self.place(session), body | ({} if turn is None else {"turn": turn}))

    @staticmethod
    def _page(after: str) -> Asked:
        return Asked("GET", "/v1/memory", None, {"limit": PAGE} | ({"after": after} if after else {}))


def http() -> Any:
    try:
        import httpx2
    except ImportError:
        raise UserError("the client of memtrain serve needs httpx2: pip install 'memtrain[client]'") from None
    return httpx2


def _said(body: bytes) -> str:
    """The sentence of an OpenAI error, or nothing."""
    try:
        return " ".join(str(json.loads(body)["error"]["message"]).split())
    except (ValueError, TypeError, KeyError):
        return ""


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
