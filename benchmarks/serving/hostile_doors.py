"""Hand-made hostile requests about who asks, under which name, on which connection, and who goes away."""

from __future__ import annotations

from random import Random

from hostile_cases import CHAT, JSON, World, ask, kind, mine
from hostile_http import SAY, raw_chat
from hostile_wire import Headers, Shot, as_json, chunked, raw_request

LONG = as_json({"messages": [{"role": "user", "content": "k=1 " * 3000}], "stream": True, "session_id": "mine-hangup"})
UNKNOWN = frozenset({401})
FOREIGN = frozenset({403})


@kind
def never_ending(w: World, r: Random) -> Shot:
    """A body that stops half-way; whoever sent it goes away."""
    head = r.choice(
        (b"Content-Length: 5000", b"Transfer-Encoding: chunked", b"Content-Length: 5000\r\nExpect: 100-continue")
    )
    start = SAY if b"chunked" not in head else chunked([SAY[:20]], b"ffff\r\n{")
    first = raw_chat(w, "never_ending", b"Content-Type: application/json\r\n" + head).sent
    return Shot("never_ending", (first, start, b" ", b" "), pause=0.02, requests=0, hang_up=0, reset=r.random() < 0.5)


@kind
def slow(w: World, r: Random) -> Shot:
    sent = raw_chat(
        w, "slow", f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(SAY)}".encode(), SAY
    ).sent
    cuts = sorted(r.sample(range(1, len(sent)), r.randrange(2, 6)))
    pieces = tuple(sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True))
    return Shot("slow", pieces, pause=0.03, statuses=frozenset({200}))


@kind
def heads(w: World, r: Random) -> Shot:
    """Values that would be lines, and names given twice."""
    value = r.choice(
        (
            b"a\x00b",
            b"a\x7fb",
            b"a\xffb",
            "é".encode(),
            b"a\r\n b",
            b"a%0d%0aX-Evil: 1",
            b"a\\r\\nX: 1",
            b"\xed\xa0\x80",
            b"a\tb",
            b"a,b",
            b"",
            b" ",
            b"a" * 129,
            b"mine-1\n",
            b"mine-1",
        )
    )
    headers: list[tuple[str, str | bytes]] = [JSON, ("X-Session-Id", value)]
    if r.random() < 0.3:
        headers.append(("X-Session-Id", r.choice(w.others)))
    if r.random() < 0.2:
        headers += [
            ("Expect", r.choice(("100-continue", "x"))),
            ("Range", "bytes=0-1"),
            ("If-None-Match", "*"),
            ("X-HTTP-Method-Override", "DELETE"),
            ("X-Original-URL", "/v1/memory"),
        ]
    if r.random() < 0.2:
        headers += [
            ("X-Forwarded-For", "1.2.3.4\x01"),
            ("X-Forwarded-Proto", r.choice(("https", "gopher", "\xff"))),
            ("X-Forwarded-Host", "evil.example"),
            ("Forwarded", "for=x"),
        ]
    plain = not any(byte in value for byte in b"\0\r\n\x7f")
    return ask(w, "heads", "POST", CHAT, SAY, headers, valid_http=plain)


@kind
def upgrades(w: World, r: Random) -> Shot:
    what = r.choice(("websocket", "h2c", "x"))
    headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", what),
        ("Sec-WebSocket-Version", r.choice(("13", "99"))),
        ("Sec-WebSocket-Key", r.choice(("dGhlIHNhbXBsZSBub25jZQ==", "x"))),
    ]
    return ask(
        w,
        "upgrades",
        "GET",
        r.choice(("/v1/memory", "/", CHAT)),
        headers=headers,
        valid_http=what != "websocket",
        hang_up=1 if what == "websocket" else None,
    )


@kind
def other_names(w: World, r: Random) -> Shot:
    """A page that has its own name point here (DNS rebinding)."""
    port = w.host.rpartition(":")[2]
    name = r.choice(
        (
            "evil.example",
            f"evil.example:{port}",
            f"127.0.0.1.evil.example:{port}",
            f"localhost.evil.example:{port}",
            "0.0.0.0",
            "[::]",
            "[",
            "[::1",
            "",
            "127.0.0.2",
            "169.254.169.254",
            f"evil@evil:{port}",
            "2130706433",
            "127.1",
            "localhost.",
            "x" * 3000,
            "\u00e9",
        )
    )
    target = r.choice(("/v1/memory", "/v1/models", "/health", "/metrics", "/", "/nothing"))
    return ask(
        w,
        "other_names",
        "GET",
        target,
        None,
        [("Host", name.encode("latin-1"))],
        statuses=FOREIGN,
        valid_http=name.isascii(),
    )


@kind
def other_origins(w: World, r: Random) -> Shot:
    """Requests as a browser sends them for another page."""
    port = w.host.rpartition(":")[2]
    origin = r.choice(
        (
            "http://evil.example",
            "null",
            "http://127.0.0.1:1",
            f"http://localhost.evil.example:{port}",
            "file://",
            "http://[",
            f"http://{w.host}@evil.example",
            "",
            "chrome-extension://x",
        )
    )
    headers: Headers = r.choice(
        (
            [JSON, ("Origin", origin)],
            [("Content-Type", "text/plain"), ("Origin", origin)],
            [JSON, ("Sec-Fetch-Site", r.choice(("cross-site", "same-site")))],
        )
    )
    method, target, body = r.choice(
        (
            ("POST", CHAT, SAY),
            ("DELETE", "/v1/memory", None),
            ("GET", "/v1/memory", None),
            ("OPTIONS", CHAT, None),
            ("GET", "/metrics", None),
        )
    )
    return ask(w, "other_origins", method, target, body, headers, statuses=FOREIGN)


@kind
def keys(w: World, r: Random) -> Shot:
    """Everything but a key that opens."""
    wrong: tuple[str | bytes | None, ...] = (
        None, "", "Bearer", "Bearer ", "Bearer  ", "Bearer mt-", "Bearer x", f"Bearer {w.revoked}", f"Basic {w.key}",
            f"Token {w.key}", w.key, f"Bearer {w.key}x", f"Bearer {w.key[:-1]}", f"Bearer {w.key.upper()}",
        f"Bearer {w.key},{w.key}", f"Bearer \"{w.key}\"", "Bearer mt-" + "a" * 300, "Bearer mt-" + "a" * 30_000,
            b"Bearer mt-\xff\xfe", "Bearer mt-é".encode(), "Bearer mt-' OR 1=1 --", "Bearer mt-%", "Bearer null",
        "Bearer mt-\x01", f"Digest username=bob, {w.key}", f"bearer{w.key}", "Bearer ../../keys",
    )  # fmt: skip
    given = r.choice(wrong)
    headers: list[tuple[str, str | bytes]] = [JSON] + ([] if given is None else [("Authorization", given)])
    if r.random() < 0.3:
        headers += r.choice(
            (
                [("X-Api-Key", w.key)],
                [("Cookie", f"key={w.key}")],
                [("Authorization", "Bearer x"), ("Proxy-Authorization", f"Bearer {w.key}")],
            )
        )
    other = r.choice(w.others)
    method, target, body = r.choice((("POST", CHAT, SAY), ("GET", "/v1/memory", None), ("GET", f"/v1/memory/{other}",
        None), ("DELETE", f"/v1/memory/{other}", None), ("DELETE", "/v1/memory", None),
                                     ("GET", f"/v1/memory/{other}/export", None), ("PUT", f"/v1/memory/{other}",
                                         b'{"memory": "x"}'), ("GET", "/v1/models", None), ("POST",
                                         f"/v1/memory/{other}/ask", b'{"question": "word?"}'),
                                     ("GET", f"/v1/memory?key={w.key}&access_token={w.key}", None), ("GET",
                                         "/v1/nothing", None)))  # fmt: skip
    plain = given is None or b"\x01" not in (given if isinstance(given, bytes) else given.encode())
    return Shot("keys", (raw_request(method, target, w.host, headers, body),), statuses=UNKNOWN, valid_http=plain)


@kind
def pipelined(w: World, r: Random) -> Shot:
    """Several requests at once on a connection: each is judged by its own head."""
    keep = ("Connection", "keep-alive")
    own = raw_request("GET", "/v1/memory/none-such", w.host, [("Authorization", f"Bearer {w.key}"), keep])
    bare = raw_request("GET", f"/v1/memory/{r.choice(w.others)}", w.host, [keep])
    say = raw_request("POST", CHAT, w.host, [("Authorization", f"Bearer {w.key}"), JSON, keep], SAY)
    if r.random() < 0.5:
        return Shot("pipelined", (r.choice((own, say)) + bare,), requests=2)
    return Shot(
        "pipelined",
        (own + r.choice((r.randbytes(50), b"0\r\n\r\n", SAY, b"GET /v1/memory HTTP/1.1\r\n\r\n")) + b"\r\n\r\n",),
        valid_http=False,
        requests=2,
    )


@kind
def hang_ups(w: World, r: Random) -> Shot:
    target = r.choice((CHAT, CHAT, "/v1/memory/mine-hangup/read"))
    body = LONG if target == CHAT else as_json({"text": "k=1 " * 3000, "stream": r.random() < 0.7})
    sent = ask(w, "hang_ups", "POST", target, body).sent
    if r.random() < 0.3:
        sent = sent[: r.randrange(1, len(sent))]
    return Shot(
        "hang_ups",
        (sent,),
        requests=0,
        hang_up=r.choice((0, 0, 1, 200, 1000, 3000)) if sent.endswith(body) else 0,
        reset=r.random() < 0.5,
    )


@kind
def own_sessions(w: World, r: Random) -> Shot:
    """What is right among all that is wrong: it must go on working."""
    name = mine(r)
    method, target, body = r.choice(
        (
            ("GET", "/v1/memory?limit=3", None),
            ("PUT", f"/v1/memory/{name}", b'{"memory": "a=1"}'),
            ("GET", "/v1/models", None),
            ("GET", "/health", None),
            ("GET", "/metrics", None),
            ("GET", "/openapi.json", None),
            ("POST", CHAT, SAY),
        )
    )
    return ask(w, "own_sessions", method, target, body, statuses=frozenset({200}))
