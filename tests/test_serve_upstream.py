"""In front of another OpenAI-compatible server: one of our own, and servers that lie, think aloud, refuse and die."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastapi
import httpx2
import openai
import pytest
from notebook_model import CHAT, MEMORY, notebook_agent
from serve_here import listening, serving, until
from test_serve_http import LONG, client, text_of

from memtrain.errors import UserError
from memtrain.memory.chat import ChatAgent
from memtrain.memory.text_model import Message
from memtrain.serving.errors import UpstreamError
from memtrain.serving.upstream import TokenEstimate, UpstreamModel, open_client, served
from memtrain.types import SamplingParams

SAID = [Message("system", "Be brief."), Message("user", "Hello there")]


class Upstream:
    """A server of chat completions whose every answer a test decides; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.pieces: list[str] = ["Hello", " to", " you."]
        self.usage: dict[str, int] | None = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
        self.finish = "stop"
        self.refusals: list[tuple[int, Any]] = []
        self.delay = 0.0
        self.gone = 0

    def app(self) -> Any:
        app = fastapi.FastAPI()

        @app.post("/v1/chat/completions")
        async def complete(request: fastapi.Request) -> Any:
            self.asked.append(await request.json())
            self.keys.append(request.headers.get("authorization"))
            if self.refusals:
                status, body = self.refusals.pop(0)
                kind = "application/json" if isinstance(body, dict) else "text/plain"
                text = json.dumps(body) if isinstance(body, dict) else body
                return fastapi.Response(text, status, media_type=kind)
            return fastapi.responses.StreamingResponse(self._stream(), media_type="text/event-stream")

        @app.get("/v1/models")
        async def models() -> Any:
            data = [{"id": "m", "object": "model", "created": 1, "owned_by": "me", "max_model_len": 4096}]
            return {"object": "list", "data": data}

        return app

    async def _stream(self) -> Any:
        def frame(choices: list[Any], **more: Any) -> str:
            body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
            return f"data: {json.dumps({**body, **more})}\n\n"

        try:
            for piece in self.pieces:
                await asyncio.sleep(self.delay)
                yield frame([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
            yield frame([{"index": 0, "delta": {}, "finish_reason": self.finish}])
            if self.usage:
                yield frame([], usage=self.usage)
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.gone += 1
            raise


@contextmanager
def upstream() -> Iterator[tuple[Upstream, str]]:
    behind = Upstream()
    with listening(behind.app()) as url:
        yield behind, url


async def ask(url: str, params: SamplingParams | None = None, **more: Any) -> tuple[Any, list[str]]:
    pieces: list[str] = []
    async with open_client(url, **more) as opened:
        opened.max_retries = 0
        model = UpstreamModel(opened, "m")
        reply = await model.complete(SAID, params or SamplingParams(20, 0.5, 0.9, ("END",)), pieces.append)
    return reply, pieces


def test_in_front_of_another_of_our_servers(tmp_path: Path) -> None:
    behind, model = notebook_agent(context_tokens=2000)
    with serving(behind, tmp_path / "behind.db") as far:
        front = ChatAgent(
            UpstreamModel(open_client(f"{far}/v1"), "notebook", count=lambda t: len(t.split())), MEMORY, CHAT
        )
        with serving({"front": front}, tmp_path / "front.db") as url:
            ai = client(url)

            def chat(text: str, **more: Any) -> Any:
                asked = [{"role": "user", "content": text}]
                return ai.chat.completions.create(model="front", messages=asked, extra_body={"session_id": "x"}, **more)

            first = chat("FACT hotel=Ritz")
            assert "hotel is Ritz" in text_of(first)
            assert first.usage.prompt_tokens > 0
            chunks = list(chat("FACT hotel=Astoria", stream=True))
            assert "hotel is Astoria" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text_of(chat("hotel?")) == "Astoria"
            done = httpx2.post(f"{url}/v1/memory/x/read", json={"text": f"{LONG}\n\nFACT code=4711"}, timeout=30).json()
            assert done["chunks"] >= 8
            assert text_of(chat("code?")) == "4711"
            # A client that hangs up stops the work all the way down.
            model.delay = 60
            asked = model.asked
            with pytest.raises(openai.APITimeoutError):
                ai.with_options(timeout=1.5).chat.completions.create(
                    model="front", messages=[{"role": "user", "content": "hello"}]
                )
            until(lambda: model.cancelled == 1)
            assert model.asked == asked + 1


def test_what_is_sent_and_what_comes_back() -> None:
    with upstream() as (behind, url):
        reply, pieces = asyncio.run(ask(url))
        assert reply.text == "".join(pieces) == "Hello to you."
        assert len(pieces) > 1
        assert (reply.prompt_tokens, reply.completion_tokens, reply.stop_reason) == (11, 3, "stop")
        [sent] = behind.asked
        assert sent["messages"] == [{"role": m.role, "content": m.content} for m in SAID]
        assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["stop"]) == (20, 0.5, 0.9, ["END"])
        assert sent["stream_options"] == {"include_usage": True}
        behind.finish = "length"
        assert asyncio.run(ask(url))[0].stop_reason == "length"
        assert asyncio.run(served(open_client(url))) == {"m": 4096}


def test_thoughts_and_stop_texts_are_not_told() -> None:
    cases = [
        (["<th", "ink>secret", " plan</thi", "nk>\n\n", "Hello"], "Hello"),
        (["<think>never closed", " at all"], ""),
        (["<thin", "g is>"], "<thing is>"),
        (["  Hi ", " EN", "D of it"], "Hi"),
        (["Hi E", "NOUGH"], "Hi ENOUGH"),
        ([], ""),
    ]
    with upstream() as (behind, url):
        for given, wanted in cases:
            behind.pieces = given
            reply, pieces = asyncio.run(ask(url))
            assert reply.text == wanted
            assert "".join(pieces) == wanted


def test_turns_alternate_for_templates_that_insist() -> None:
    async def go(url: str) -> None:
        async with open_client(url) as opened:
            said = [Message("system", "s"), Message("assistant", "a"), Message("user", "b"), Message("user", "c")]
            await UpstreamModel(opened, "m").complete(said, SamplingParams(5))

    with upstream() as (behind, url):
        asyncio.run(go(url))
        sent = [(message["role"], message["content"]) for message in behind.asked[0]["messages"]]
        assert sent == [("system", "s"), ("user", "..."), ("assistant", "a"), ("user", "b\n\nc")]


def test_what_a_server_does_not_take_is_left_out() -> None:
    def unsupported(name: str) -> tuple[int, Any]:
        return 400, {"error": {"message": "no", "type": "x", "param": name, "code": "unsupported_parameter"}}

    async def twice(url: str) -> None:
        async with open_client(url) as opened:
            model = UpstreamModel(opened, "m")
            for _ in range(2):
                assert (await model.complete(SAID, SamplingParams(7, 0.5))).text == "Hello to you."

    with upstream() as (behind, url):
        behind.refusals = [unsupported("max_tokens"), unsupported("temperature")]
        asyncio.run(twice(url))
        assert len(behind.asked) == 4  # learnt once
        assert behind.asked[-1]["max_completion_tokens"] == 7
        assert not {"max_tokens", "temperature"} & set(behind.asked[-1])


def test_a_server_without_usage_is_counted() -> None:
    with upstream() as (behind, url):
        behind.usage = None
        reply, _ = asyncio.run(ask(url))
        assert reply.prompt_tokens >= 5
        assert reply.completion_tokens >= 3


def test_the_estimate_learns_and_stays_on_the_safe_side() -> None:
    estimate = TokenEstimate()
    english = "The committee met on Tuesday to look at the plans. " * 40
    assert estimate("") == 0
    assert estimate(english) == len(english) / 2
    estimate.learn(["short"], 500)  # says nothing
    assert estimate(english) == len(english) / 2
    estimate.learn([english, english], len(english) // 2)  # a quarter token a byte
    assert len(english) / 4 < estimate(english) < len(english) / 3
    estimate.learn(["漢字" * 400], 1200)  # half a token a byte: from now on the worst that was seen
    assert estimate("漢字" * 400) >= 1200
    estimate.learn(["x" * 2000], 90_000)
    assert estimate("x" * 2000) == 2000  # no tokenizer makes more of a byte


ERROR = {"message": "Detail: key sk-123", "type": "x", "param": None, "code": None}
LONG_ERROR = {**ERROR, "message": "This model's maximum context length is 4096 tokens."}


@pytest.mark.parametrize(
    ("refusal", "status", "words"),
    [
        ((401, {"error": ERROR}), 502, "does not accept the key; see --upstream-key-env"),
        ((403, "no"), 502, "does not accept the key"),
        ((404, {"error": ERROR}), 502, "does not know the model"),
        ((429, {"error": ERROR}), 429, "takes no more requests"),
        ((400, {"error": LONG_ERROR}), 502, "lower chat.context_tokens or memory.chunk_tokens"),
        ((400, {"error": ERROR}), 502, "refuses the request"),
        ((500, "<html>Traceback (most recent call last)</html>"), 502, "fails with status 500"),
        ((503, "loading"), 503, "fails with status 503"),
    ],
)
def test_refusals_become_one_sentence(tmp_path: Path, refusal: tuple[int, Any], status: int, words: str) -> None:
    with upstream() as (behind, far):
        opened = open_client(far)
        opened.max_retries = 0
        agent = ChatAgent(UpstreamModel(opened, "m"), MEMORY, CHAT)
        with serving(agent, tmp_path / "s.db") as url:
            for stream in (False, True):
                behind.refusals = [refusal]
                body = {"messages": [{"role": "user", "content": "hello"}], "stream": stream, "session_id": "x"}
                answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=20)
                assert answer.status_code == status
                message = answer.json()["error"]["message"]
                assert words in message
                assert "Traceback" not in message
            assert httpx2.get(f"{url}/v1/memory/x").status_code == 404


def test_servers_that_are_not_there_or_are_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(UpstreamError, match=rf"127.0.0.1:{port}/v1/ cannot be reached; is it running"):
        asyncio.run(ask(f"http://me:pass@127.0.0.1:{port}"))
    with pytest.raises(UpstreamError) as caught:
        asyncio.run(served(open_client(f"http://me:pass@127.0.0.1:{port}")))
    assert "pass" not in str(caught.value)
    other = fastapi.FastAPI()

    @other.api_route("/{path:path}", methods=["GET", "POST"])
    async def page() -> Any:
        return fastapi.Response("<html>hello</html>", media_type="text/html")

    @other.post("/broken/chat/completions")
    async def broken() -> Any:
        return fastapi.Response("data: {nonsense\n\n", media_type="text/event-stream")

    with listening(other) as url:
        for path in ("", "/broken"):
            with pytest.raises(UpstreamError, match="does not answer as an OpenAI API does"):
                asyncio.run(ask(url + path))
        with pytest.raises(UpstreamError, match="does not answer as an OpenAI API does"):
            asyncio.run(served(open_client(url)))


def test_the_key_comes_from_the_environment_and_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with upstream() as (behind, url):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
        asyncio.run(ask(url))
        monkeypatch.setenv("MY_KEY", "sk-mine")
        asyncio.run(ask(url, key_env="MY_KEY"))
        assert behind.keys == ["Bearer none", "Bearer sk-mine"]
    with pytest.raises(UserError, match="NO_SUCH_KEY: that environment variable is not set"):
        open_client("http://127.0.0.1:1", "NO_SUCH_KEY")
    for bad in ("", "localhost:8000", "ftp://x", "http://"):
        with pytest.raises(UserError, match="is no address"):
            open_client(bad)
