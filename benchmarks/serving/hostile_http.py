"""Hand-made hostile requests whose malice is in HTTP itself: paths, methods, types, lengths, sizes."""

from __future__ import annotations

from random import Random
from urllib.parse import quote

from hostile_cases import CHAT, JSON, World, ask, kind
from hostile_wire import Headers, Shot, as_json, chunked

SAY = as_json({"messages": [{"role": "user", "content": "a=1"}]})
BODY_BYTES = 16 * 2**20
"""The longest body that the server takes by default."""


def raw_chat(w: World, name: str, head: bytes, body: bytes = b"", **more: object) -> Shot:
    """A chat request whose further headers and body are bytes, and may lie about each other."""
    start = f"POST {CHAT} HTTP/1.1\r\nHost: {w.host}\r\nAuthorization: Bearer {w.key}\r\n".encode()
    return Shot(name, (start + head + b"\r\n\r\n" + body,), **more)  # type: ignore[arg-type]


@kind
def paths(w: World, r: Random) -> Shot:
    name = r.choice(w.others)
    tricks = (
        "/v1/memory/../memory/{}", "/v1/memory/%2e%2e/{}", "/v1/memory/%2e%2e%2f{}",
        "/v1/memory/..%2f..%2f..%2fetc%2fpasswd", "/v1/memory//{}",
        "/v1/memory/bob/{}", "/v1/memory/bob%2f{}", "/v1/memory/bob:{}", "/v1/memory/bob%00{}", "/v1/memory/{}%00",
        "/v1/memory/{}%0a", "/v1/memory/{}/",
        "/v1/memory/{}/.", "/v1/memory/{}/..", "/v1/memory/{}%2fexport", "/v1/memory/%252e%252e%252f{}",
        "/v1/memory/\u2215{}", "/v1/memory/%ef%bc%8f{}",
        "/v1/memory/%c0%ae%c0%ae/{}", "/v1/memory/%ff%fe", "/v1/memory/{};x=1", "/v1/memory/{}?x", "/v1/memory/{}#x",
        "/v1/memory/", "/v1/memory/ ", "/v1/memory/%20",
        "/v1//memory/{}", "//v1/memory/{}", "/v1/memory/{}/export/..", "/./v1/memory/{}", "/V1/MEMORY/{}",
        "/v1/memory\\{}", "/v1/memory/%5c{}", "/%2e%2e/%2e%2e/etc/passwd",
        "/page/..%2f..%2fserver.py", "/page/%2e%2e/app.py", "/static/../../x", "/docs", "/redoc", "/.env",
        "/.git/config", "/v1/files", "/v1/models/..%2f{}", "/v1/models/%00",
        "/v1/models/", "/v1/memory/{}%", "/v1/memory/%zz", "/v1/memory/%u0041", "*",
        "http://evil.example/v1/memory/{}", "/v1/memory/" + "a" * 129, "/v1/memory/" + "a" * 20_000,
        "/v1/memory/{}/" * 200, "/v1/memory?" + "a=b&" * 3000, "/v1/memory?limit=" + "9" * 5000,
        "/v1/memory?after=%ff%00%ed%a0%80", "/v1/memory?limit=1&limit=x", "/v1/memory?limit=%31%30",
        "/v1/memory?after=" + "z" * 129, "/v1/memory?after=%00", "/v1/memory?limit=0", "/v1/memory?limit=-1",
        "/v1/memory?limit=1e3", "/v1/memory?limit=NaN", "/v1/memory?limit=",
    )  # fmt: skip
    target = r.choice(tricks).replace("{}", name)
    method = r.choice(("GET", "GET", "GET", "PUT", "POST"))
    plain = target.isascii() and " " not in target and not target.startswith(("*", "http"))
    return ask(w, "paths", method, target, None if method == "GET" else b"{}", valid_http=plain)


@kind
def random_paths(w: World, r: Random) -> Shot:
    letters = "abz09._:@-~%/\\?#&=+;,'\"<>|^`{}[]!$*()"
    tail = "".join(r.choice(letters) for _ in range(r.randrange(1, 40)))
    if r.random() < 0.5:
        tail = quote("".join(chr(r.randrange(0x500)) for _ in range(r.randrange(1, 20))), safe="")
    target = (
        r.choice(("/", "/v1/", "/v1/memory/", "/v1/memory?", "/v1/models/", "/v1/memory/a/", "/health", "/metrics"))
        + tail
    )
    return ask(
        w, "random_paths", r.choice(("GET", "DELETE", "PUT", "POST")) if "?" not in target else "GET", target, b"{}"
    )


@kind
def methods(w: World, r: Random) -> Shot:
    method = r.choice(
        ("HEAD", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "QUERY", "get", "GETT", "X" * 500, "POST", "PUT", "GET")
    )
    target = r.choice(
        (
            CHAT,
            "/v1/models",
            "/v1/memory/mine-1",
            "/v1/memory/mine-1/export",
            "/v1/memory/mine-1/read",
            "/v1/memory/mine-1/ask",
            "/health",
            "/metrics",
            "/openapi.json",
            "/",
        )
    )
    return ask(w, "methods", method, target, r.choice((None, b"{}", SAY)))


@kind
def no_http(w: World, r: Random) -> Shot:
    lines = (
        b"\r\n\r\n", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"<script> / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00", r.randbytes(200) + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    )  # fmt: skip
    return Shot("no_http", (r.choice(lines),), valid_http=False, hang_up=1)


@kind
def content_types(w: World, r: Random) -> Shot:
    body = r.choice((SAY, b"a=1", b"--x\r\n\r\n--x--", b"", SAY.decode().encode("utf-16")))
    types = ("text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data",
        "multipart/form-data; boundary=x", "application/json; charset=utf-16", "application/xml", "APPLICATION/JSON",
             "application/jsonx", "application/json, text/plain", "application/vnd.x+json",
             "application/json;" + "x" * 3000, "*/*", "json", "\u00e9", ";", "application/json;charset=\"")  # fmt: skip
    headers: list[tuple[str, str | bytes]] = [("Content-Type", r.choice(types).encode("latin-1"))]
    headers = r.choice(
        (
            headers,
            headers,
            [],
            [*headers, JSON],
            [JSON, *headers],
            [JSON, ("Content-Encoding", r.choice(("gzip", "br", "deflate", "x")))],
        )
    )
    target = r.choice((CHAT, "/v1/memory/mine-1/read", "/v1/memory/mine-1/ask"))
    return ask(w, "content_types", "POST", target, body, headers)


@kind
def lengths(w: World, r: Random) -> Shot:
    """Heads that say something wrong of the body, and chunks that lie."""
    n = len(SAY)
    wrong = [
        f"Content-Length: {v}".encode()
        for v in (-1, f"+{n}", f"{n}, {n}", f"{n}, {n + 1}", "x", "", 10**30, "0x10", "1e3", f" {n}\t1")
    ]
    wrong += [
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: xchunked",
    ]
    wrong += [
        f"Content-Length: {n}\r\nTransfer-Encoding: chunked".encode(),
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    ]
    if r.random() < 0.5:
        return raw_chat(
            w, "lengths", b"Content-Type: application/json\r\n" + r.choice(wrong), SAY, valid_http=False, hang_up=1
        )
    bodies = (
        b"zz\r\n" + SAY, b"-5\r\n" + SAY, b"ffffffffffffffffffff\r\n" + SAY, b"5\r\n" + SAY + b"\r\n0\r\n\r\n",
        b"0;" + b"x" * 20_000, b"5\n" + SAY, chunked([SAY], b"0\r\nX: y\r\n\r\n"),
        chunked([SAY[:9], SAY[9:]]), chunked([bytes([b]) for b in SAY]), chunked([SAY],
            b"0\r\n" + b"A: b\r\n" * 5000 + b"\r\n"), b"\r\n\r\n",
    )  # fmt: skip
    return raw_chat(
        w,
        "lengths",
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked",
        r.choice(bodies),
        valid_http=False,
        hang_up=1,
    )


@kind
def oversized(w: World, r: Random) -> Shot:
    which = r.randrange(12)
    too_long = frozenset({413})
    if which == 0:
        return ask(w, "oversized", "POST", CHAT, b'{"messages": "' + b"x" * (BODY_BYTES + 2**18), statuses=too_long)
    if which == 1:
        pieces = chunked([b"x" * 2**20] * (BODY_BYTES // 2**20 + 1))
        return ask(w, "oversized", "POST", CHAT, pieces, [JSON, ("Transfer-Encoding", "chunked")], statuses=too_long)
    if which == 2:
        body = as_json({"messages": [{"role": "user", "content": [[0]] * 10**6}]})
        return ask(w, "oversized", "POST", CHAT, body, statuses=frozenset({400}))
    if which == 3:
        return ask(w, "oversized", "PUT", "/v1/memory/mine-2", as_json({"memory": "x" * 65_537}), statuses=too_long)
    if which < 6:
        head = f"Content-Type: application/json\r\nContent-Length: {BODY_BYTES + 1 + r.randrange(10**15)}".encode()
        return raw_chat(w, "oversized", head, b"{", statuses=too_long)
    big = r.choice((1000, 30_000, 60_000, 70_000, 200_000))
    many: Headers = r.choice(
        (
            [("X-Session-Id", "a" * big)],
            [("X-Any", "a" * big)],
            [(f"X-{n}", "a") for n in range(big // 100)],
            [("Cookie", "a=b;" * (big // 4))],
        )
    )
    return ask(
        w, "oversized", "POST", CHAT, SAY, [JSON, *many], valid_http=big < 50_000, hang_up=None if big < 50_000 else 1
    )
