"""The server in front of a real, tiny torch model: what is streamed, counted, stopped."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import pytest
import tiny
from serve_here import serving, until
from test_serve_http import client, say, text_of

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.errors import UserError
from memtrain.memory.chat import ChatAgent, Conversation
from memtrain.memory.text_model import Message
from memtrain.recipe import Recipe, parse_recipe
from memtrain.report.console import Screen
from memtrain.serve import Upstream, load_agent, upstream_agents


def recipe() -> Recipe:
    return parse_recipe(
        {
            "model": {"name": str(tiny.model_folder()), "dtype": "float32", "device": "cpu"},
            "memory": {"chunk_tokens": 64, "memory_tokens": 12, "answer_tokens": 8, "style": "compact"},
            "chat": {"context_tokens": 256, "reply_tokens": 24, "temperature": 0.0, "write_temperature": 0.0},
        },
        "of the test",
    )


@pytest.fixture(scope="module")
def agent() -> ChatAgent:
    return load_agent(recipe(), Screen())


def test_streaming_says_the_same(agent: ChatAgent, tmp_path: Path) -> None:
    with serving(agent, tmp_path / "s.db") as url:
        ai = client(url)
        for text in ("The fox met Mikhail Bakunin in Paris.", "Who was it?"):
            whole = say(ai, text, "whole", stop=["zzz"])
            chunks = list(say(ai, text, "streamed", stop=["zzz"], stream=True, stream_options={"include_usage": True}))
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(pieces).rstrip() == text_of(whole)
            assert chunks[-1].usage == whole.usage
            memory = [chunk.memtrain["memory"] for chunk in chunks if getattr(chunk, "memtrain", None)][-1]
            assert memory == whole.memtrain["memory"]
            assert whole.usage.completion_tokens <= 24 + 12


def test_a_long_file_and_sessions_at_once(agent: ChatAgent, tmp_path: Path) -> None:
    async def one(ai: openai.AsyncOpenAI, number: int) -> int:
        asked = [{"role": "user", "content": f"Number {number} met the fox. " * 3}]
        answer = await ai.chat.completions.create(
            model="notebook", messages=asked, extra_body={"session_id": f"s{number}"}
        )
        return answer.memtrain["turn"]

    async def many(url: str) -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ai:
            return await asyncio.gather(*(one(ai, number) for number in range(6)))

    with serving(agent, tmp_path / "s.db") as url:
        text = "The quick brown fox jumps over the lazy dog. " * 40
        done = httpx2.post(f"{url}/v1/memory/file/read", json={"text": text}, timeout=60).json()
        assert done["chunks"] == len(done["calls"]) > 3
        assert all(call["completion_tokens"] <= 12 for call in done["calls"])
        answer = httpx2.post(f"{url}/v1/memory/file/ask", json={"question": "What did the fox do?"}, timeout=60)
        assert answer.status_code == 200
        assert asyncio.run(many(url)) == [1] * 6


def test_a_checkpoint_is_served(tmp_path: Path) -> None:
    async def changed(folder: Path) -> None:
        trained = tiny.engine()
        prompt = tiny.ids(random.Random(0), 20)
        rows = [tiny.row(prompt, tiny.ids(random.Random(1), 9), loss="cross_entropy")]
        await trained.update(rows, LossConfig(), OptimiserConfig(lr=0.05))
        await trained.save(folder)
        await trained.export(folder.parent / "whole")

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tiny.run(changed(folder))
    plain, restored = load_agent(recipe(), Screen()), load_agent(recipe(), Screen(), folder)
    whole = load_agent(recipe().with_model(name=str(tmp_path / "whole")), Screen())

    async def said(agent: ChatAgent) -> str:
        return (await agent.turn(Conversation(), [Message("user", "The quick brown fox")])).reply

    assert tiny.run(said(restored)) == tiny.run(said(whole)) != tiny.run(said(plain))


def test_an_upstream_is_counted_by_its_own_tokenizer(tmp_path: Path) -> None:
    upstream = Upstream("http://127.0.0.1:1", "later", tokenizer=str(tiny.model_folder()))
    agent = upstream_agents(upstream, recipe())["later"]
    text = "The quick brown fox jumps over Mikhail Bakunin."
    assert agent.model.count(text) == len(tiny.tokenizer().encode(text, add_special_tokens=False))
    with pytest.raises(UserError, match=r"--tokenizer .* cannot be loaded"):
        upstream_agents(replace(upstream, tokenizer=str(tmp_path)), recipe())


def test_a_client_that_hangs_up_stops_the_sampler(agent: ChatAgent, tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 4000
    with serving(agent, tmp_path / "s.db") as url:
        http = httpx2.Client(base_url=url)
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/memory/file/read", json={"text": text}, timeout=1.0)
        stopped = 'memtrain_turns_stopped_total{reason="hung up"} 1.0'
        until(lambda: stopped in http.get("/metrics").text, 10)
        read = http.get("/metrics").text.split("memtrain_chunks_read_total ")[1].split("\n")[0]
        assert say(client(url), "Hello", "other").memtrain["turn"] == 1  # the sampler is free
        assert http.get("/metrics").text.split("memtrain_chunks_read_total ")[1].split("\n")[0] == read
        assert http.get("/v1/memory/file").status_code == 404


@pytest.mark.slow
def test_in_front_of_a_server_that_is_not_ours(agent: ChatAgent, tmp_path: Path) -> None:
    """``transformers serve``, with the weights that our own engine has: greedy, both say the same."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    command = ["serve", str(tiny.model_folder()), "--device", "cpu", "--dtype", "float32", "--port", str(port)]
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*program, *command], stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        address = f"http://127.0.0.1:{port}/v1"
        until(lambda: answers(f"http://127.0.0.1:{port}/health") or process.poll() is not None, 60)
        assert process.poll() is None, (tmp_path / "log").read_text()
        upstream = Upstream(address, str(tiny.model_folder()), tokenizer=str(tiny.model_folder()))
        front = next(iter(upstream_agents(upstream, recipe()).values()))
        with serving({"ours": agent, "theirs": front}, tmp_path / "s.db") as url:
            ai = client(url)
            for text in ("The quick brown fox jumps over the lazy dog.", "Who met Mikhail Bakunin?"):
                asked = [{"role": "user", "content": text}]
                ours, theirs = (
                    ai.chat.completions.create(model=name, messages=asked, extra_body={"session_id": name})
                    for name in ("ours", "theirs")
                )
                assert text_of(theirs) == text_of(ours)
                assert theirs.memtrain["memory"] == ours.memtrain["memory"]
                assert theirs.usage.prompt_tokens == ours.usage.prompt_tokens
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
