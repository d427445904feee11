"""Search over HTTP: our client and our server on a real port, and servers that hang, lie and die."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_servers import PASSAGES, Behaviour, Exchange, our_server, server_that, small_index

from memtrain.errors import UserError
from memtrain.search.base import Found, Hit
from memtrain.search.breaker import Breaker, Patience
from memtrain.search.client import HttpRetriever
from memtrain.search.contract import Unanswered, answer, endpoint, read_answer, without_secrets

httpx = pytest.importorskip("httpx2")
pytest.importorskip("fastapi")
QUICK = Patience(timeout=10, retries=2, pause=0.02, break_after=100, cooldown=0.2)
HASTY = replace(QUICK, timeout=0.2)


def ask(
    url: str, queries: list[str], patience: Patience = QUICK, topk: int = 3
) -> tuple[list[Found], dict[str, float]]:
    """All queries at once, each from an episode of its own."""
    retriever = HttpRetriever(url, patience)

    async def all_at_once() -> list[Found]:
        found = await asyncio.gather(*(retriever.search([query], topk) for query in queries))
        return [outcome for [outcome] in found]

    try:
        return asyncio.run(all_at_once()), retriever.counts()
    finally:
        retriever.close()


# ---- our server -----------------------------------------------------------------------------------------------------


def test_our_server_answers_our_client_as_the_index_does() -> None:
    index, queries = small_index(), ["river Arta", "who led the masons", "xylophone", "song"]
    with our_server(index) as url:
        found, counts = ask(url, queries, topk=2)
        assert [list(outcome.hits) for outcome in found] == index.find(queries, 2)
        assert counts["requests"] == 1  # those who wait together ask together
        assert (counts["searches"], counts["failed"], counts["retried"]) == (4, 0, 0)
        many, counts = ask(f"{url}/retrieve/", ["masons"] * 150)
        assert {outcome.hits[0].title for outcome in many} == {"Markos"}
        assert counts["requests"] == 3


def test_our_server_keeps_the_contract_and_its_limits() -> None:
    with our_server() as url, httpx.Client(base_url=url) as client:
        assert client.get("/health").json() == {"status": "ok", "passages": len(PASSAGES), "index": "bm25"}
        asked: dict[str, Any] = {"queries": ["Thyamis"], "topk": 1, "return_scores": True}
        scored = client.post("/retrieve", json=asked).json()["result"]
        [[item]] = scored
        assert item["document"]["contents"] == '"Thyamis"\nThe Thyamis is a river in Epirus.'
        assert item["score"] > 0
        bare = client.post("/retrieve", json={**asked, "return_scores": False}).json()["result"]
        assert bare == [[item["document"]]]
        assert len(client.post("/retrieve", json={"queries": ["river bridge song"]}).json()["result"][0]) == 3
        refused = {
            413: [b'{"queries": ["' + b"x" * (2 << 20) + b'"]}', b'{"queries": ["' + b"x" * 20_000 + b'"]}'],
            422: [b"{}", b"[", b'{"queries": ["a"], "topk": 0}', b'{"queries": ' + str(["a"] * 2000).encode() + b"}"],
        }
        for status, bodies in refused.items():
            for body in bodies:
                head = {"Content-Type": "application/json"}
                assert client.post("/retrieve", content=body, headers=head).status_code == status
        assert client.get("/health").status_code == 200


@given(st.lists(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=30)), max_size=3), max_size=3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(lists: list[list[tuple[str, str]]], scores: bool) -> None:
    hits = [[Hit(title.replace("\n", " ").strip(), text.strip(), 0.5) for title, text in one] for one in lists]
    body = json.dumps(answer(hits, scores)).encode()
    found = read_answer(body, len(hits), 5)
    wanted = [[(hit.title, hit.text, 0.5 if scores else 0.0) for hit in one] for one in hits]
    clean = [[(h.title, h.text, h.score) for h in outcome.hits] for outcome in found]
    assert clean == [
        [(t.encode("utf-8", "replace").decode(), x.encode("utf-8", "replace").decode(), s) for t, x, s in one]
        for one in wanted
    ]


KEYS = st.sampled_from(["result", "document", "contents", "score", "text"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_any_answer_is_read_or_unanswered(content: Any) -> None:
    for whole in (content, {"result": content}, {"result": [[content]]}):
        try:
            found = read_answer(json.dumps(whole).encode(), 1, 3)
        except Unanswered:
            continue
        assert len(found) == 1
        assert all(isinstance(hit.text, str) and isinstance(hit.score, float) for hit in found[0].hits)


def test_addresses() -> None:
    assert endpoint("http://h:1/") == endpoint(" http://h:1/retrieve ") == "http://h:1/retrieve"
    assert endpoint("https://h/api?key=1") == "https://h/api/retrieve?key=1"
    assert without_secrets("http://me:secret@h:1/x") == "http://h:1/x"


# ---- servers that fail ----------------------------------------------------------------------------------------------


def drip(exchange: Exchange) -> None:
    """A byte now and then: no single read is late."""
    exchange.send_response(200)
    exchange.send_header("Content-Length", "100000")
    exchange.end_headers()
    for _ in range(100):
        exchange.wfile.write(b" ")
        exchange.wfile.flush()
        time.sleep(0.02)


def redirect(exchange: Exchange) -> None:
    exchange.send_response(302)
    exchange.send_header("Location", "http://127.0.0.1:1/")
    exchange.send_header("Content-Length", "0")
    exchange.end_headers()


def says(body: bytes, status: int = 200, length: int | None = None) -> Behaviour:
    def behave(exchange: Exchange) -> None:
        exchange.send(body, status, length)
        exchange.close_connection = length is not None  # it dies in the middle

    return behave


@pytest.mark.parametrize(
    ("behave", "tries", "said"),
    [
        (Exchange.hang, 3, "no answer in 0.2 s"),
        (drip, 3, "no answer in 0.2 s"),
        (says(b"<html>"), 3, "not JSON"),
        (says(b"[" * 100_000), 3, "not JSON"),
        (says(b"\xff\xfe{"), 3, "not JSON"),
        (says(b'{"results": []}'), 3, "no lists of documents"),
        (says(b'{"result": [[3]]}'), 3, "not a document"),
        (says(b'{"result": [[{"document": {"id": "1"}}]]}'), 3, "contents"),
        (says(b'{"result": []}'), 3, "0 result lists for 1 queries"),
        (says(b" " * (17 << 20)), 3, "over 16 MiB"),
        (says(b'{"result": [[', length=1000), 3, "RemoteProtocolError"),
        (says(b"", 503), 3, "503"),
        (says(b"", 404), 1, "404"),
        (redirect, 1, "302"),
    ],
)
def test_a_failing_server_gives_failed_searches(behave: Behaviour, tries: int, said: str) -> None:
    with server_that(behave) as peer:
        began = time.monotonic()
        [found], counts = ask(peer.url, ["bridge"], HASTY if "0.2 s" in said else QUICK)
        assert time.monotonic() - began < 5
        assert found.failed
        assert found.hits == ()
        assert said in found.failure
        assert len(peer.seen) == tries
        assert counts | {"seconds": 0} == {
            "searches": 1,
            "failed": 1,
            "requests": tries,
            "retried": tries - 1,
            "seconds": 0,
        }


def test_nobody_there() -> None:
    with server_that(Exchange.right) as peer:
        pass
    [found], counts = ask(peer.url, ["bridge"])
    assert found.failure.startswith("ConnectError")
    assert counts["retried"] == 2
    retriever = HttpRetriever(peer.url, QUICK)
    with pytest.raises(UserError, match="memtrain search-server") as error:
        asyncio.run(retriever.check())
    assert peer.url in str(error.value)
    retriever.close()


def test_a_second_try_may_succeed_after_a_pause_that_doubles() -> None:
    at: list[float] = []

    def third_time(exchange: Exchange) -> None:
        at.append(time.monotonic())
        exchange.right() if exchange.number == 3 else exchange.send(b"oops", 500)

    patience = Patience(timeout=2, retries=3, pause=0.1)
    with server_that(third_time) as peer:
        [found], counts = ask(peer.url, ["bridge"], patience)
    assert found == Found((Hit("Title", "found", 1.5),))
    assert (counts["requests"], counts["retried"], counts["failed"]) == (3, 2, 0)
    assert at[1] - at[0] >= 0.05
    assert at[2] - at[1] >= 0.1


def test_halves_of_characters_and_odd_scores_are_taken() -> None:
    body = b'{"result": [[{"document": {"contents": "T\\n\\ud800 text"}, "score": "high"}]]}'
    with server_that(says(body)) as peer:
        [found], _ = ask(peer.url, ["bridge"])
    assert found == Found((Hit("T", "? text", 0.0),))


# ---- a dead server does not keep everybody waiting ------------------------------------------------------------------


def test_the_breaker_opens_and_closes() -> None:
    now = [0.0]
    breaker = Breaker(3, 10.0, lambda: now[0])
    for _ in range(3):
        assert breaker.passes()
        breaker.report(answered=False)
    assert not breaker.passes()
    now[0] = 10.0
    assert breaker.passes()
    assert not breaker.passes()  # one try alone
    breaker.report(answered=False)
    now[0] = 19.0
    assert not breaker.passes()
    now[0] = 20.0
    assert breaker.passes()
    breaker.report(answered=True)
    assert breaker.passes()
    breaker.report(answered=False)
    assert breaker.passes()


def test_a_dead_server_costs_a_bounded_time_and_is_found_again() -> None:
    patience = Patience(timeout=0.4, retries=3, pause=0.02, break_after=3, cooldown=0.5)
    with server_that(Exchange.hang) as peer:
        retriever = HttpRetriever(peer.url, patience, connections=2)

        async def one_after_another(n: int) -> list[Found]:
            return [(await retriever.search(["bridge"], 3))[0] for _ in range(n)]

        began = time.monotonic()
        found = asyncio.run(one_after_another(50))
        assert time.monotonic() - began < 15  # 50 searches of 4 tries each would take 80 s
        assert all(outcome.failed for outcome in found)
        assert "has not answered for a while" in found[-1].failure
        assert len(peer.seen) < 20
        peer.become(Exchange.right)
        time.sleep(0.6)
        assert not any(outcome.failed for outcome in asyncio.run(one_after_another(3)))  # in another event loop, too
        assert retriever.counts()["failed"] == 50
        retriever.close()


def test_a_caller_that_computes_does_not_time_the_server_out() -> None:
    """An engine on the CPU keeps the event loop busy for longer than the deadline."""

    def slowly(exchange: Exchange) -> None:
        time.sleep(0.1)
        exchange.right()

    with server_that(slowly) as peer:
        retriever = HttpRetriever(peer.url, Patience(timeout=1.0, retries=0))

        async def compute_meanwhile() -> list[Found]:
            waiting = asyncio.create_task(retriever.search(["bridge"], 3))
            for _ in range(30):
                await asyncio.sleep(0)  # the request is on its way
            time.sleep(1.4)
            return await waiting

        [found] = asyncio.run(compute_meanwhile())
        retriever.close()
    assert not found.failed


def test_a_cancelled_search_leaves_the_others_alone() -> None:
    with server_that(Exchange.right) as peer:
        retriever = HttpRetriever(peer.url, QUICK)

        async def cancel_one() -> list[Found]:
            first, second = (asyncio.create_task(retriever.search(["bridge"], 3)) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            return await second

        [found] = asyncio.run(cancel_one())
        assert not found.failed
        retriever.close()
        assert not asyncio.run(retriever.search(["bridge"], 3))[0].failed  # closed is not the end
        retriever.close()
        retriever.close()


def test_the_search_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(UserError, match=r"memtrain\[search\]"):
        HttpRetriever("http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    from memtrain.search.server import make_app

    with pytest.raises(UserError, match=r"memtrain\[search\]"):
        make_app(small_index())
