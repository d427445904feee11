"""Bounded memory in LlamaIndex's own ``Memory`` and chat engine, in front of a deterministic model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from notebook_model import notebook_agent
from plug_models import assert_travelled, full_agent, is_write, run_example, said, small_talk, travel
from serve_here import serving

pytest.importorskip("llama_index.core")
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, MessageRole, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import Memory
from pydantic import Field

from memtrain.client import MemoryClient
from memtrain.errors import UserError
from memtrain.memory.text_model import Message
from memtrain.plugs.common import estimate_tokens
from memtrain.plugs.llama_index import BoundedMemoryBlock, LlamaIndexModel, as_message
from memtrain.plugs.served import ServedMemory
from memtrain.types import SamplingParams

LIMIT = 2000
WINDOW = 1500


class NotebookLLM(MockLLM):
    """The notebook as a model of LlamaIndex; keeps what it was shown."""

    seen: list[list[ChatMessage]] = Field(default_factory=list, exclude=True)
    limits: list[int | None] = Field(default_factory=list, exclude=True)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=WINDOW, is_chat_model=True)

    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        self.seen.append(list(messages))
        self.limits.append(self.max_tokens)
        text = said([(message.role.value, message.content or "") for message in messages])
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text))

    async def achat(self, messages: Sequence[ChatMessage], **more: Any) -> ChatResponse:
        await asyncio.sleep(0)
        return self.chat(messages, **more)


def memory_of(block: BoundedMemoryBlock, session: str, folder: Path, limit: int = LIMIT) -> Memory:
    return Memory.from_defaults(
        session_id=session,
        token_limit=limit,
        token_flush_size=200,
        memory_blocks=[block],
        tokenizer_fn=lambda text: [0] * estimate_tokens(text),
        async_database_uri=f"sqlite+aiosqlite:///{folder / f'{session}.db'}",
    )


def tokens(messages: Sequence[ChatMessage]) -> int:
    return sum(estimate_tokens(message.content or "") for message in messages)


def chat_of(llm: NotebookLLM, memory: Memory) -> SimpleChatEngine:
    return SimpleChatEngine.from_defaults(llm=llm, memory=memory)


def test_a_long_conversation_stays_within_its_budget(tmp_path: Path) -> None:
    llm = NotebookLLM()
    block = BoundedMemoryBlock(llm=llm)
    engine = chat_of(llm, memory_of(block, "a", tmp_path))
    for turn in range(30):
        fact = {0: "FACT name=Ada FACT hotel=Ritz ", 10: "FACT hotel=Savoy ", 20: "FACT hotel=Astoria "}.get(turn, "")
        engine.chat(fact + small_talk(turn))
    writes = [shown for shown in llm.seen if is_write(shown[-1].content or "")]
    replies = [shown for shown in llm.seen if shown not in writes]
    assert writes
    assert all(tokens(shown) <= WINDOW for shown in writes)
    assert all(tokens(shown) <= LIMIT for shown in replies)
    assert "FACT hotel=Savoy" not in block.memories["a"]
    assert "Ritz" not in block.memories["a"]
    assert engine.chat("name?").response == "Ada"
    assert engine.chat("hotel?").response == "Astoria"
    limit = {limit for shown, limit in zip(llm.seen, llm.limits, strict=True) if shown in writes}
    assert len(limit) == 1
    assert limit.pop() is not None


def test_await_and_sessions_side_by_side(tmp_path: Path) -> None:
    """One block may serve many sessions, at once."""
    llm = NotebookLLM()
    block = BoundedMemoryBlock(llm=llm)

    async def one(name: str) -> tuple[str, str]:
        engine = chat_of(llm, memory_of(block, name, tmp_path))
        for turn in range(12):
            await engine.achat((f"FACT me={name} " if turn == 0 else "") + small_talk(turn))
        return name, str((await engine.achat("me?")).response)

    async def all_of_them() -> list[tuple[str, str]]:
        return list(await asyncio.gather(*(one(f"n{number}") for number in range(5))))

    found = asyncio.run(all_of_them())
    assert all(name == answer for name, answer in found)
    assert block.memories == {name: f"FACT me={name}" for name, _ in found}
    assert block.forget("n1")
    assert not block.forget("n1")


def test_memories_are_saved_and_restored(tmp_path: Path) -> None:
    llm = NotebookLLM()
    block = BoundedMemoryBlock(llm=llm)
    engine = chat_of(llm, memory_of(block, "a", tmp_path))
    for turn in range(12):
        engine.chat(("FACT name=Ada " if turn == 0 else "") + small_talk(turn))
    kept = block.model_dump_json()
    assert "FACT name=Ada" in kept
    restored = BoundedMemoryBlock(llm=NotebookLLM(), **json.loads(kept))
    later = chat_of(NotebookLLM(), memory_of(restored, "a", tmp_path))
    assert later.chat("name?").response == "Ada"


def test_a_message_longer_than_any_prompt_is_read_in_pieces(tmp_path: Path) -> None:
    llm = NotebookLLM()
    block = BoundedMemoryBlock(llm=llm)
    memory = memory_of(block, "a", tmp_path, limit=20_000)
    pasted = f"FACT first=1 {small_talk(1, 3000)} FACT last=2"
    asyncio.run(block.aput([ChatMessage(role="user", content=pasted)], session_id="a"))
    assert len(llm.seen) > 5
    assert all(tokens(shown) <= WINDOW for shown in llm.seen)
    assert block.memories["a"] == "FACT first=1\nFACT last=2"
    assert "FACT first=1" in (memory.get()[0].content or "")


def test_what_could_not_be_folded_is_folded_the_next_time() -> None:
    class Failing(NotebookLLM):
        def chat(self, messages: Sequence[ChatMessage], **more: Any) -> ChatResponse:
            if not self.seen:
                self.seen.append([])
                raise ConnectionError("gone")
            return super().chat(messages, **more)

    block = BoundedMemoryBlock(llm=Failing())
    with pytest.raises(ConnectionError):
        asyncio.run(block.aput([ChatMessage(role="user", content="FACT a=1")], session_id="s"))
    assert block.memories == {}
    kept = json.loads(block.model_dump_json())
    block = BoundedMemoryBlock(llm=NotebookLLM(), **kept)
    asyncio.run(block.aput([ChatMessage(role="user", content="FACT b=2")], session_id="s"))
    assert block.memories == {"s": "FACT a=1\nFACT b=2"}
    assert block.waiting == {}


def test_two_writes_of_one_session_at_once_lose_nothing() -> None:
    block = BoundedMemoryBlock(llm=NotebookLLM())

    async def both() -> None:
        said = [[ChatMessage(role="user", content=f"FACT k{n}={n}")] for n in range(5)]
        await asyncio.gather(*(block.aput(messages, session_id="s") for messages in said))

    asyncio.run(both())
    assert sorted(block.memories["s"].splitlines()) == [f"FACT k{n}={n}" for n in range(5)]


def test_tools_and_instructions_are_told_too() -> None:
    call = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="find", tool_kwargs={"what": "x"})])
    assert as_message(call) == Message("assistant", '(called find({"what": "x"}))')
    assert as_message(ChatMessage(role="tool", content="42")) == Message("assistant", "(got from a tool: 42)")
    assert as_message(ChatMessage(role="system", content="Be brief")) == Message("system", "Be brief")
    assert as_message(ChatMessage(role="user", content=" ")) is None


def test_what_must_be_cut_is_cut() -> None:
    block = BoundedMemoryBlock(llm=NotebookLLM(), priority=1)
    text = "One fact. " * 50
    cut = asyncio.run(block.atruncate(text, 100))
    assert cut is not None
    assert text.startswith(cut)
    assert estimate_tokens(cut) <= estimate_tokens(text) - 100
    assert asyncio.run(block.atruncate(text, 10_000)) is None


def test_any_model_of_llama_index_is_a_text_model() -> None:
    async def check() -> None:
        model = LlamaIndexModel(NotebookLLM())
        assert model.context_tokens == WINDOW
        reply = await model.complete([Message("user", "FACT a=1 FACT b=2 a? b?")], SamplingParams(20))
        assert (reply.text, reply.stop_reason) == ("1 and 2", "stop")
        pieces: list[str] = []
        mock = LlamaIndexModel(MockLLM(max_tokens=3))
        streamed = await mock.complete([Message("user", "a b c")], SamplingParams(2), pieces.append)
        assert streamed.text == "".join(pieces).strip() != ""

    asyncio.run(check())


def test_a_server_may_write_the_memory(tmp_path: Path) -> None:
    llm = NotebookLLM()
    with serving(notebook_agent()[0], tmp_path / "sessions.db") as url:
        block = BoundedMemoryBlock(llm=ServedMemory(url))
        engine = chat_of(llm, memory_of(block, "a", tmp_path))
        for turn in range(14):
            engine.chat(("FACT name=Ada " if turn == 0 else "") + small_talk(turn))
        assert block.memories == {"a": "FACT name=Ada"}
        assert engine.chat("name?").response == "Ada"
        assert not any(is_write(shown[-1].content or "") for shown in llm.seen)
        with MemoryClient(url) as client:
            assert list(client.sessions()) == []


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with serving(full_agent(), tmp_path / "chat.db") as url:
        known = ("--url", f"{url}/v1", "--tokens", "1500")
        assert_travelled(run_example("llama_index_chat.py", *known, said=travel()))


def test_sizes_that_cannot_be_are_said_so() -> None:
    with pytest.raises(UserError, match="context_tokens=300 leaves no room"):
        BoundedMemoryBlock(llm=NotebookLLM(), context_tokens=300)
