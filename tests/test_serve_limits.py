"""The gate and the refusals: sizes, rates, times, origins, names, and the shape of every error."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from notebook_model import notebook_agent
from serve_here import serving, until
from test_serve_http import LONG, client, say

from memtrain.serving.limits import Bucket

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "FACT a=1"}]}
JSON = {"Content-Type": "application/json"}


def refused(answer: Any, status: int, words: str = "") -> None:
    """The status, OpenAI's shape, one sentence with these words in it, no trace."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text


def test_a_body_is_counted_while_it_comes(tmp_path: Path) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"messages": [{"role": "user", "content": "'
        for _ in range(200):
            yield b"x" * 1024

    with serving(notebook_agent()[0], tmp_path / "s.db", max_body_bytes=4096) as url:
        http = httpx2.Client(base_url=url, headers=JSON)
        refused(http.post(CHAT, content=b"x" * 5000), 413, "a request may have 4,096 bytes")
        refused(http.post(CHAT, content=endless()), 413)
        refused(http.put("/v1/memory/x", content=endless()), 413)
        # A head that says nothing true of the length.
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {10**19}\r\n\r\n{{".encode())
            assert b" 413 " in raw.recv(4096).split(b"\r\n")[0]
        assert http.post(CHAT, json=ASKED).status_code == 200


def test_a_body_that_does_not_come_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memtrain.serving.limits.BODY_SECONDS", 0.2)
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 50\r\n\r\n{{".encode())
            assert b" 408 " in raw.recv(4096).split(b"\r\n")[0]


def test_long_bodies_are_few_at_a_time(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=0.8)
    with serving(agent, tmp_path / "s.db", max_body_bytes=2200) as url, ThreadPoolExecutor(9) as pool:
        body = {"messages": [{"role": "user", "content": "x" * 2000}], "max_tokens": 1}
        answers = list(pool.map(lambda _: httpx2.post(f"{url}{CHAT}", json=body, timeout=20), range(9)))
        assert sorted(answer.status_code for answer in answers) == [200] * 8 + [503]
        refused(next(a for a in answers if a.status_code == 503), 503, "too many long requests")
        model.delay = 0
        assert httpx2.post(f"{url}{CHAT}", json=body, timeout=20).status_code == 200


def test_requests_a_minute_of_one_owner(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db", requests_per_minute=5) as url:
        answers = [httpx2.get(f"{url}/v1/memory") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        refused(answers[-1], 429, "more than 5 requests a minute")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 12
        assert httpx2.get(f"{url}/health").status_code == httpx2.get(f"{url}/metrics").status_code == 200
        with pytest.raises(openai.RateLimitError):
            say(client(url), "hello")


def test_the_bucket() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    assert [bucket.take() for _ in range(60)] == [0.0] * 60
    assert bucket.take() == pytest.approx(1.0)
    now[0] = 0.5
    assert bucket.take() == pytest.approx(0.5)
    now[0] = 1.0
    assert bucket.take() == 0.0
    assert bucket.take() == pytest.approx(1.0)
    now[0] = 1000.0
    assert sum(bucket.take() == 0.0 for _ in range(100)) == 60


def test_how_many_at_once_and_how_long(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=0.3)
    with serving(agent, tmp_path / "s.db", concurrent_requests=2) as url, ThreadPoolExecutor(2) as pool:
        under_way = [pool.submit(httpx2.post, f"{url}{CHAT}", json=ASKED, timeout=20) for _ in range(2)]
        until(lambda: model.asked == 2)
        answer = httpx2.get(f"{url}/v1/models")
        refused(answer, 503, "2 requests are under way")
        assert answer.headers["retry-after"] == "1"
        assert [one.result().status_code for one in under_way] == [200, 200]
        assert httpx2.get(f"{url}/v1/models").status_code == 200
    agent, model = notebook_agent(delay=0.5)
    with serving(agent, tmp_path / "s.db", request_seconds=0.3) as url:
        refused(httpx2.post(f"{url}{CHAT}", json={**ASKED, "session_id": "x"}), 504, "not done within 0.3 seconds")
        refused(httpx2.post(f"{url}{CHAT}", json={**ASKED, "stream": True}), 504)
        refused(httpx2.post(f"{url}/v1/memory/x/read", json={"text": LONG}), 504)
        assert model.cancelled == 3
        assert httpx2.get(f"{url}/v1/memory/x").status_code == 404


def test_how_many_sessions(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db", sessions_per_owner=2) as url:
        for name in ("a", "b", "a"):
            assert httpx2.post(f"{url}{CHAT}", json={**ASKED, "session_id": name}).status_code == 200
        refused(httpx2.post(f"{url}{CHAT}", json={**ASKED, "session_id": "c"}), 429, "2 sessions are kept")
        refused(httpx2.post(f"{url}{CHAT}", json=ASKED), 429)
        refused(httpx2.put(f"{url}/v1/memory/c", json={}), 429)
        refused(httpx2.post(f"{url}/v1/memory/c/read", json={"text": "x"}), 429)
        assert httpx2.delete(f"{url}/v1/memory/a").status_code == 200
        assert httpx2.post(f"{url}{CHAT}", json=ASKED).status_code == 200


def test_pages_of_other_origins_and_other_names_are_refused(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        port = url.rsplit(":", 1)[1]
        http = httpx2.Client(base_url=url)
        for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil.example", "[::", "a:b:c"):
            refused(http.get("/v1/memory", headers={"Host": host}), 403, "not called by that name")
        for host in (f"localhost:{port}", "LOCALHOST", "[::1]:80", "127.0.0.1"):
            assert http.get("/v1/memory", headers={"Host": host}).status_code == 200
        others = ["http://evil.example", "null", f"http://localhost:{port}", "http://127.0.0.1:1", "", "http://[", "x"]
        for origin in others:
            refused(http.post(CHAT, json=ASKED, headers={"Origin": origin}), 403, "other web pages")
            assert http.request("OPTIONS", CHAT, headers={"Origin": origin}).status_code == 403
        assert http.post(CHAT, json=ASKED, headers={"Origin": url}).status_code == 200
        page = {"Sec-Fetch-Site": "cross-site"}
        refused(http.get("/v1/memory", headers=page), 403)
        refused(http.get("/health", headers={**page, "Sec-Fetch-Dest": "iframe"}), 403)
        assert http.get("/health", headers={**page, "Sec-Fetch-Dest": "document"}).status_code == 200  # a link
        refused(http.get("/v1/memory", headers={**page, "Sec-Fetch-Dest": "document"}), 403)
        answer = http.get("/v1/memory")
        assert "access-control-allow-origin" not in answer.headers
        assert (answer.headers["cache-control"], answer.headers["x-frame-options"]) == ("no-store", "DENY")
    with serving(notebook_agent()[0], tmp_path / "s.db", hosts=()) as url:
        assert httpx2.get(f"{url}/v1/models", headers={"Host": "memory.example"}).status_code == 200


BODIES = [
    b"",
    b"[",
    b"null",
    b"[]",
    b'"x"',
    b"{}",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"messages": [{"role": "user", "content": "x"}], "n": 1' + b"1" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e999}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}',
    b'{"messages": {"role": "user"}}',
    b'{"messages": [null]}',
    b'{"messages": [{"role": "user", "content": [{"type": "file"}]}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "\\ud800"}}]}]}',
    b'{"messages": [{"role": "user", "content": [5, "x", null, []]}]}',
    b'{"messages": [{"role": "\\ud800", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "session_id": "\\ud800"}',
    b'{"messages": [{"role": "user", "content": "x"}], "model": "\\u0000\\ud800"}',
    b'{"messages": [{"role": "user", "content": "x"}], "metadata": {"session_id": {"\\ud800": 1}}}',
    b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"\\ud800": 1e999}]}',
    b'{"text": "\\ud800", "question": 5}',
    b'{"text": ""}',
    b'{"memory": 5, "expires_in": -1, "turn": 1e30}',
    b'{"expires_in": 1e308}',
    b'{"expires_in": Infinity}',
    b'{"turn": 99999999999999999999}',
    b'{"question": " "}',
]


def test_whatever_is_sent_the_answer_is_a_sentence(tmp_path: Path) -> None:
    strange = ["", "/", "/v1", "/v1/", "/v1/memory/", "/v1/memory/%00", "/v1/memory/..%2F..%2Fetc", "/v1/memory/a%2Fb"]
    strange += ["/v1/memory/" + "a" * 200, "/v1/memory/\u00e9", "/v1/memory/x/nothing", "/v1/chat/completions/x"]
    strange += ["/v1/memory?limit=0", "/v1/memory?limit=x", "/v1/memory?after=" + "a" * 200, "/v1/memory?after=%00%ff"]
    strange += ["/v1/models/%00", "/v1/models/", "//v1/models", "/%2e%2e/v1/models", "/v1/models/a/b"]
    with serving(notebook_agent()[0], tmp_path / "s.db", requests_per_minute=100_000) as url:
        http = httpx2.Client(base_url=url)
        paths = [CHAT, "/v1/memory/x", "/v1/memory/x/read", "/v1/memory/x/ask"]
        for path in paths:
            for body in BODIES:
                answer = http.request("PUT" if path.endswith("/x") else "POST", path, content=body, headers=JSON)
                if answer.status_code != 200:
                    assert answer.status_code in (400, 404, 409, 413)
                    refused(answer, answer.status_code)
            kind = http.request("PUT" if path.endswith("/x") else "POST", path, content=b"a=1")
            refused(kind, 415, "Content-Type: application/json")
        for path in strange:
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "BREW"):
                answer = http.request(method, path, json={} if method in ("POST", "PUT") else None)
                if answer.status_code != 200:
                    assert answer.status_code in (400, 404, 405, 413, 429)
                    refused(answer, answer.status_code)
        for path, wrong, words in [
            ("/v1/memory/x/read", {"text": " \n"}, "text: must not be blank"),
            ("/v1/memory/x/ask", {"question": ""}, "question: must not be blank"),
            (CHAT, {**ASKED, "max_tokens": "5"}, "max_tokens: must be a number"),
            (CHAT, {**ASKED, "temperature": True}, "temperature: must be a number"),
            (CHAT, {**ASKED, "stream": "yes"}, "stream: input should be a valid boolean"),
            (CHAT, {**ASKED, "n": True}, "n must be 1"),
        ]:
            refused(http.post(path, json=wrong), 400, words)
        refused(http.get(CHAT), 405, "/v1/chat/completions does not take GET")
        assert http.get(CHAT).headers["allow"] == "POST"
        assert http.patch("/v1/memory/x").headers["allow"] == "GET, PUT, DELETE"
        refused(http.get("/nothing"), 404, "there is no /nothing here")
        refused(http.post(CHAT, json={**ASKED, "session_id": "x" * 10_000}), 400, "a session id has")
        long = http.post(CHAT, json={**ASKED, "model": "x" * 250})
        refused(long, 404)
        assert len(long.text) < 800
        header = http.post(CHAT, json=ASKED, headers={"X-Session-Id": "../../etc/passwd"})
        refused(header, 400, "a session id has")
        assert http.get("/metrics").text.count('status="5') == 0
