"""The client against the real server: what it reads, edits and forgets, and the one sentence of every error."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from notebook_model import notebook_agent
from serve_here import listening, serving

from memtrain.client import AsyncMemoryClient, MemoryClient, Refused, Session
from memtrain.errors import UserError
from memtrain.serving.owners import Owners
from memtrain.serving.store import Store

LONG = "FACT hotel=Ritz\n\n" + "\n\n".join(f"FACT n{i}={i} " + "word " * 40 for i in range(10)) + "\n\nFACT hotel=Savoy"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with serving(notebook_agent()[0], tmp_path / "sessions.db") as url:
        yield url


def test_a_memory_is_read_asked_edited_exported_and_forgotten(server: str) -> None:
    heard: list[tuple[int, int, str]] = []
    with MemoryClient(server) as client:
        read = client.read("ada", LONG, on_reading=lambda *step: heard.append(step))
        assert [step[0] for step in heard] == list(range(1, read.chunks + 1))
        assert read.chunks > 3
        assert {step[1] for step in heard} == {read.chunks}
        assert heard[-1][2] == read.memory
        assert "FACT hotel=Savoy" in read.memory
        assert "Ritz" not in read.memory
        assert client.ask("ada", "hotel?").answer == "Savoy"
        later = client.remember("ada", "FACT hotel=Astoria")
        assert later.turn == read.turn + 1
        assert client.recall("ada", "hotel?").answer == "Astoria"
        found = client.get("ada")
        assert (found.turn, found.memory, found.model) == (later.turn, later.memory, "notebook")
        edited = client.edit("ada", "FACT hotel=Plaza", expires_in=3600, turn=found.turn)
        assert edited.expires is not None
        assert client.ask("ada", "hotel?").answer == "Plaza"
        assert client.edit("ada", expires_in=None).expires is None
        kept = client.export("ada")
        assert kept["session"]["memory"] == "FACT hotel=Plaza"
        assert len(kept["turns"]) >= 3
        assert client.forget("ada")
        assert not client.forget("ada")


def test_sessions_are_listed_page_by_page(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memtrain.client.wire.PAGE", 3)
    with MemoryClient(server) as client:
        assert list(client.sessions()) == []
        for number in range(7):
            client.edit(f"s{number}", "FACT a=b")
        found = list(client.sessions())
        assert [session.session_id for session in found] == [f"s{n}" for n in range(7)]
        assert all(isinstance(session, Session) and session.memory_chars == 8 for session in found)
        assert client.forget_everything() == 7


def test_the_same_with_await(server: str) -> None:
    heard: list[int] = []

    async def tell(chunk: int, chunks: int, memory: str) -> None:
        await asyncio.sleep(0)
        heard.append(chunk)

    async def work() -> None:
        async with AsyncMemoryClient(server) as client:
            read = await client.read("ada", LONG, "hotel?", tell)
            assert heard == list(range(1, read.chunks + 1))
            assert (await client.ask("ada", "hotel?")).answer == "Savoy"
            assert (await client.get("ada")).memory == read.memory
            assert (await client.edit("bob", "FACT hotel=Ritz")).turn == 1
            assert [session.session_id async for session in client.sessions()] == ["ada", "bob"]
            assert (await client.export("bob"))["session"]["memory"] == "FACT hotel=Ritz"
            assert await client.forget("bob")
            assert not await client.forget("bob")
            assert await client.forget_everything() == 1

    asyncio.run(work())


def test_a_client_that_gives_up_stops_the_work(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=0.2)

    async def work(url: str) -> None:
        async with AsyncMemoryClient(url) as client:
            begun = asyncio.Event()

            async def tell(*_: Any) -> None:
                begun.set()

            reading = asyncio.create_task(client.read("ada", LONG, on_reading=tell))
            await asyncio.wait_for(begun.wait(), 10)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            for _ in range(100):
                if model.cancelled:
                    break
                await asyncio.sleep(0.05)
            with pytest.raises(Refused):
                await client.get("ada")

    with serving(agent, tmp_path / "sessions.db") as url:
        asyncio.run(work(url))
    assert model.cancelled == 1


def one_sentence(call: Callable[[], Any], *words: str) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    for word in words:
        assert word in text
    return caught.value


def test_what_is_refused_is_one_sentence_with_its_status(server: str) -> None:
    with MemoryClient(server) as client:
        error = one_sentence(lambda: client.get("nobody"), server, "nobody")
        assert isinstance(error, Refused)
        assert error.status == 404
        assert one_sentence(lambda: client.ask("nobody", "hotel?")).status == 404  # type: ignore[attr-defined]
        client.edit("ada", "FACT a=b")
        assert one_sentence(lambda: client.edit("ada", "FACT a=c", turn=7)).status == 409  # type: ignore[attr-defined]
        assert one_sentence(lambda: client.edit("ada", "x" * 70_000)).status == 413  # type: ignore[attr-defined]
        one_sentence(lambda: client.read("ada", " "), "must not be blank")
        for name in ("", "../ada", "a b", ".", "a/b", "x" * 129):
            one_sentence(lambda name=name: client.get(name), "cannot name a session")


def test_a_key_is_needed_and_is_right_or_wrong(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "sessions.db"))
    key = Owners(store).add("ada")
    store.close()
    with serving(notebook_agent()[0], tmp_path / "sessions.db") as url:
        with MemoryClient(url) as client:
            assert one_sentence(lambda: list(client.sessions()), "none was given").status == 401  # type: ignore[attr-defined]
        with MemoryClient(url, "wrong") as client:
            error = one_sentence(lambda: client.get("a"), "not one of")
            assert "wrong" not in str(error).replace(url, "")
        with MemoryClient(url, key) as client:
            assert client.edit("a", "FACT a=b").turn == 1


def test_too_many_requests_say_when_to_come_back(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db", requests_per_minute=3) as url, MemoryClient(url) as client:
        error = one_sentence(lambda: [list(client.sessions()) for _ in range(9)], "ask again in")
        assert isinstance(error, Refused)
        assert error.status == 429
        assert error.wait_seconds is not None
        assert 0 < error.wait_seconds <= 60


def test_a_server_that_is_not_there_or_is_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
    with MemoryClient(url) as client:
        one_sentence(lambda: client.get("ada"), url, "memtrain serve")
        one_sentence(lambda: client.read("ada", "text"), url, "memtrain serve")

    async def work() -> None:
        async with AsyncMemoryClient(url) as client:
            await client.ask("ada", "hotel?")

    one_sentence(lambda: asyncio.run(work()), url, "memtrain serve")
    for address in (
        "",
        "localhost:8080",
        "ftp://x",
        "http://",
        "http://[::1",
        "http://a:b",
        "http://a b",
        "http://a:99999",
    ):
        one_sentence(lambda address=address: MemoryClient(address), "not the address")
    for key in ("schlüssel", "two words", "a\nb"):
        error = one_sentence(lambda key=key: MemoryClient(url, key), "the key given is none")
        assert key not in str(error)


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", b'{"data": 3}', b'{"session_id": 3}', b'{"data": [3]}'])
def test_a_stranger_is_told_apart(answer: bytes) -> None:
    async def stranger(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": answer})

    with listening(stranger) as url, MemoryClient(url) as client:
        one_sentence(lambda: client.get("ada"), "no memtrain server")
        one_sentence(lambda: client.read("ada", "text"), url)
        if b"data" in answer:
            one_sentence(lambda: list(client.sessions()), "no memtrain server")


def stream_of(*events: bytes) -> Any:
    """An application that answers every request with these server-sent events."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "websocket"
        if scope["type"] == "lifespan":
            await receive()
            return await send({"type": "lifespan.startup.complete"})
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        return await send({"type": "http.response.body", "body": b""})

    return app


def test_a_stream_is_read_by_its_own_rules() -> None:
    """Line signs of other kinds stand inside JSON; comments and a piece cut anywhere are part of the protocol."""
    told = '{"event":"memory","session_id":"a","turn":1,"memory":"one\u2028two\u0085three","chunks":1}'
    whole = f": keep-alive\n\ndata: {told}\n\ndata: [DONE]\n\n".encode()
    with listening(stream_of(whole[:90], whole[90:92], whole[92:])) as url, MemoryClient(url) as client:
        assert client.read("a", "text").memory == "one\u2028two\u0085three"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (b'data: {"error":{"message":"not done within 3 seconds"}}\n\n', "not done within 3 seconds"),
        (b'data: {"event":"reading","chunk":1,"chunks":2,"memory":"m"}\n\n', "nothing was kept"),
        (b'data: {"event":"reading","chunk":"x"}\n\n', "another version"),
        (b"data: {\n\n", "not a JSON object"),
    ],
)
def test_a_stream_that_ends_badly_is_one_sentence(event: bytes, said: str) -> None:
    with listening(stream_of(event)) as url, MemoryClient(url) as client:
        one_sentence(lambda: client.read("a", "text"), url, said)


def test_the_documented_lines_run(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "plugs.md").read_text(encoding="utf-8")
    lines = page.partition("## From your own code")[2].partition("```python\n")[2].partition("```")[0]
    exec(lines.replace("http://127.0.0.1:8080", server), {"key": "", "book": LONG})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"1 / {len(printed) - 2}"
    assert printed[-1].startswith("ada 3 ")


def test_without_httpx2_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    one_sentence(MemoryClient, "pip install 'memtrain[client]'")
