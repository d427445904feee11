"""The gate before every route: who may ask, how much, how often and for how long.

Refusals here come before a body is read. The bytes of a body are counted while they come, whatever its head says of
its length.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memtrain.serving.errors import ApiError, as_refusal, response_of
from memtrain.serving.metrics import Metrics
from memtrain.serving.owners import Owners
from memtrain.settings import ServeSettings

LOCAL = "local"
"""The owner of everything while no keys are given out."""
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
BODY_SECONDS = 60.0
"""Longest pause between two pieces of a body."""
SEND_SECONDS = 120.0
"""So long a client may take none of what it is sent; then it is given up, and its place is free."""
BODIES_AT_ONCE = 8
"""Bodies of the longest kind that are held at a time; shorter ones as many as make up the same."""
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")


class Bucket:
    """A token bucket: ``per_minute`` requests at once, and as many a minute."""

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._most, self._rate = now, float(per_minute), per_minute / 60
        self._left, self._seen = self._most, now()

    def take(self) -> float:
        """Takes one: 0 where it could, else the seconds until there is one."""
        now = self._now()
        self._left = min(self._most, self._left + (now - self._seen) * self._rate)
        self._seen = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class Gate:
    """ASGI middleware. ``hosts``: names by which this server may be called; empty: any."""

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, owners: Owners, metrics: Metrics, hosts: Collection[str]
    ) -> None:
        self.app, self.settings, self.owners, self.metrics = app, settings, owners, metrics
        self.hosts = frozenset(name.lower() for name in hosts)
        self._buckets: dict[str, Bucket] = {}
        self._under_way = 0
        self._of: Counter[str] = Counter()
        """The same by owner."""
        self._held = 0
        """Bytes of the bodies of requests under way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 499  # what is counted where nobody waited for the answer
        stuck = False

        async def watched(message: Message) -> None:
            nonlocal status, stuck
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *_headers(scope["path"])]}
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send(message)
            except TimeoutError:
                stuck = True
                raise

        with self.metrics.in_flight.track_inprogress():
            try:
                await self._checked(scope, receive, watched)
            except ApiError as refusal:
                await response_of(refusal)(scope, receive, watched)
            except Exception as error:
                if stuck:
                    return
                if status != 499:  # an answer is under way: the connection ends
                    raise
                await response_of(as_refusal(error))(scope, receive, watched)
            finally:
                route = getattr(scope.get("route"), "path_format", None) or "other"
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self.metrics.requests.labels(route, method, str(status)).inc()
                self.metrics.seconds.labels(route).observe(time.monotonic() - start)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        check_host(headers, self.hosts)
        check_origin(headers, scope["path"])
        if not scope["path"].startswith("/v1/"):
            await self._with_body(scope, headers, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner = await self._owner(headers)
        wait = self._buckets.setdefault(owner, Bucket(self.settings.requests_per_minute)).take()
        if wait:
            most = self.settings.requests_per_minute
            raise ApiError(
                429, f"more than {most} requests a minute; wait a little", code="rate_limit", retry_after=wait
            )
        most = self.settings.concurrent_requests
        if self._under_way >= most:
            raise ApiError(503, f"{most} requests are under way, the most there may be", code="busy", retry_after=1)
        share = most if owner == LOCAL else max(1, most * 3 // 4)  # no owner takes every place
        if self._of[owner] >= share:
            raise ApiError(429, f"{share} requests of yours are under way, wait for some", code="busy", retry_after=1)
        self._under_way += 1
        self._of[owner] += 1
        try:
            await self._with_body(scope, headers, receive, send)
        finally:
            self._under_way -= 1
            self._of[owner] -= 1

    async def _owner(self, headers: Headers) -> str:
        given = headers.get("authorization")
        scheme, _, key = (given or "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""

        def find() -> tuple[str | None, bool]:
            owner = self.owners.owner_of(key) if key else None
            return owner, owner is not None or self.owners.exist()

        owner, needed = await asyncio.to_thread(find)
        if owner is not None:
            return owner
        if not needed:
            return LOCAL
        sentence = "this key is not known" if given else "a key is needed: send Authorization: Bearer KEY"
        refusal = ApiError(401, sentence, code="invalid_api_key")
        refusal.headers = {"WWW-Authenticate": "Bearer"}
        raise refusal

    async def _with_body(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Stops a body that is too long, or too slow, or one too many."""
        most, seconds = self.settings.max_body_bytes, self.settings.request_seconds
        length, whole, start = 0, False, time.monotonic()
        too_long = ApiError(413, f"a request may have {most:,} bytes", code="too_long")

        async def counted() -> Message:
            nonlocal length, whole
            if whole:  # what comes now is the client hanging up
                return await receive()
            if _declared(headers) > most:
                raise too_long
            try:
                message = await asyncio.wait_for(receive(), min(BODY_SECONDS, start + seconds - time.monotonic()))
            except TimeoutError:
                raise ApiError(408, "the body did not come in time", code="too_slow") from None
            came = len(message.get("body", b""))
            length, self._held = length + came, self._held + came
            if length > most:
                raise too_long
            if self._held > most * BODIES_AT_ONCE:
                raise ApiError(503, "too many long requests are under way", code="busy", retry_after=5)
            whole = not message.get("more_body", False)
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self._held -= length


def check_host(headers: Headers, hosts: Collection[str]) -> None:
    """Refuse a request under a name that is not this server's: so web pages reach it that rebind their own name."""
    if hosts and _host(headers.get("host", "")) not in hosts:
        raise ApiError(403, "this server is not called by that name: see its options --host and --allow-host")


def check_origin(headers: Headers, path: str) -> None:
    """Refuse requests that a browser makes for a page of another origin, save for a link to our page that a person
    follows."""
    origin = headers.get("origin")
    foreign = origin is not None and _netloc(origin) != headers.get("host", "").lower()
    other_page = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    followed_link = headers.get("sec-fetch-dest") == "document" and not path.startswith("/v1/")
    if foreign or (other_page and not followed_link):
        raise ApiError(403, "requests from other web pages are not answered")


def _headers(path: str) -> list[tuple[bytes, bytes]]:
    private = [(b"cache-control", b"no-store")] if path.startswith("/v1/") else []
    return [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY"), *private]


def _netloc(origin: str) -> str:
    """``http://Host:1`` -> ``host:1``; empty for what is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _host(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _declared(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length[:20]) if length.isascii() and length.isdigit() else 0
