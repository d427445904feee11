"""Bounded memory for LlamaIndex (extra ``llama-index``): a block of ``llama_index.core.memory.Memory``::

    block = BoundedMemoryBlock(llm=llm)
    memory = Memory.from_defaults(session_id="ada", token_limit=4000, memory_blocks=[block])

``Memory`` keeps the last messages within its budget and hands the older ones to the block, which folds them into a text
that the model writes itself (or a running ``memtrain serve``, with ``ServedMemory(url)`` as the ``llm``). Memories are
kept by session id; ``block.model_dump_json()`` has all there is to save.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field, PrivateAttr

from memtrain.memory.cutting import Count, split_by_count
from memtrain.memory.text_model import Message, OnText, Reply, Role
from memtrain.memory.texts import NO_MEMORY, UserTexts
from memtrain.plugs.common import estimate_tokens, finished, memory_agent, memory_within, missing, shown, sized
from memtrain.plugs.served import MemoryWriter, ServedMemory
from memtrain.settings import MemorySettings
from memtrain.types import SamplingParams

try:
    from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
    from llama_index.core.llms import LLM
    from llama_index.core.memory import BaseMemoryBlock
except ImportError as error:
    raise missing("llama-index", error) from None

CONTEXT_TOKENS = 8192
"""Longest prompt of a memory write, where the model's window is larger."""


class LlamaIndexModel:
    """A model of LlamaIndex as a :class:`~memtrain.memory.text_model.TextModel`.

    The limit of a reply is set in the field where the model's class keeps it; the temperature stays the model's own
    unless one is given.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        context_tokens: int | None = None,
        count: Count = estimate_tokens,
        temperature: float | None = None,
    ) -> None:
        self.llm, self.count, self.temperature = llm, count, temperature
        self.context_tokens: int = context_tokens or llm.metadata.context_window

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, on_text: OnText | None = None
    ) -> Reply:
        """See :meth:`TextModel.complete`; what the provider raises goes through."""
        llm = sized(self.llm, params.max_tokens, self.temperature)
        said = [ChatMessage(role=MessageRole(message.role), content=message.content) for message in messages]
        more = {"stop": list(params.stop)} if params.stop else {}
        whole = ""
        if on_text is None:
            answer = await llm.achat(said, **more)
            whole = answer.message.content or ""
        else:
            async for answer in await llm.astream_chat(said, **more):
                on_text(answer.delta or "")
                whole += answer.delta or ""
        raw = answer.raw if isinstance(answer.raw, dict) else getattr(answer.raw, "__dict__", {})
        text, stop_reason = finished(whole, _reason(raw), params.max_tokens)
        return Reply(text, sum(self.count(message.content) for message in messages), self.count(text), stop_reason)


class BoundedMemoryBlock(BaseMemoryBlock[str]):
    """Folds the messages that leave a ``Memory`` into a text of bounded length, one for each session.

    Its ``priority`` is 0, so that ``Memory`` never cuts it; keep ``memory.memory_tokens`` well below the share of
    ``token_limit`` that ``chat_history_token_ratio`` leaves free. Raises :class:`memtrain.errors.UserError` where
    ``context_tokens`` leaves no room for a memory.
    """

    name: str = Field(default="earlier", description="Under which the memory is shown.")
    llm: LLM | ServedMemory = Field(exclude=True, description="Writes the memory.")
    memory: MemorySettings | None = Field(default=None, description="Sizes and words; default: fit context_tokens.")
    context_tokens: int | None = Field(default=None, description="Longest prompt of a memory write.")
    count: Count = Field(default=estimate_tokens, exclude=True, description="Tokens of a text.")
    memories: dict[str, str] = Field(default_factory=dict, description="The memory of each session, by its id.")
    waiting: dict[str, list[Message]] = Field(default_factory=dict, description="What could not be folded yet.")

    _writer: MemoryWriter = PrivateAttr()
    _texts: UserTexts = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Check that the sizes fit."""
        super().model_post_init(context)
        if isinstance(self.llm, ServedMemory):
            self._writer, settings = self.llm, self.memory or MemorySettings(memory_tokens=self.llm.memory_tokens)
        else:
            window = self.context_tokens or min(CONTEXT_TOKENS, self.llm.metadata.context_window)
            settings = self.memory or memory_within(window, self.count)
            model = LlamaIndexModel(self.llm, context_tokens=window, count=self.count)
            self._writer = memory_agent(model, settings)
        self._texts = UserTexts(settings)

    async def _aget(self, messages: list[ChatMessage] | None = None, session_id: str | None = None, **_: Any) -> str:
        memory = self.memories.get(session_id or "", "")
        return shown(self._texts, memory) if memory else ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        if not messages:
            return
        session = str(messages[0].additional_kwargs.get("session_id") or "")
        # Memory has let go of them by now: what a failure keeps out of the memory comes first the next time.
        said = [*self.waiting.pop(session, ()), *(found for one in messages if (found := as_message(one)) is not None)]
        try:
            while said:
                before = self.memories.get(session, NO_MEMORY)
                memory, _ = await self._writer.remember(before, said)
                if self.memories.get(session, NO_MEMORY) == before:  # else another call was faster: once more
                    self.memories[session], said = memory, []
        finally:
            if said:
                self.waiting[session] = [*said, *self.waiting.get(session, ())]

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        """The beginning of the memory; asked for only where ``priority`` is not 0."""
        left = self.count(content) - tokens_to_truncate
        return split_by_count(content, left, self.count)[0] if left > 0 else None

    def forget(self, session_id: str) -> bool:
        """Drop the memory of a session; False where there was none. ``Memory.reset`` drops messages alone."""
        self.waiting.pop(session_id, None)
        return self.memories.pop(session_id, None) is not None


def as_message(message: ChatMessage) -> Message | None:
    """A message as the memory is told of it; None where it says nothing."""
    text = "\n".join(block.text for block in message.blocks if isinstance(block, TextBlock))
    role: Role = "user" if message.role == MessageRole.USER else "assistant"
    if message.role in (MessageRole.SYSTEM, MessageRole.DEVELOPER):
        role = "system"
    if message.role in (MessageRole.TOOL, MessageRole.FUNCTION):
        text = f"(got from a tool: {text})"
    for block in message.blocks:
        if isinstance(block, ToolCallBlock):
            called = block.tool_kwargs
            said = called if isinstance(called, str) else json.dumps(called, ensure_ascii=False, default=str)
            text += f"\n(called {block.tool_name}({said}))"
    return Message(role, text.strip()) if text.strip() else None


def _reason(raw: dict[str, Any]) -> Any:
    """Why the model stopped, where the provider's answer says so."""
    choices = raw.get("choices") or [{}]
    first = choices[0] if isinstance(choices[0], dict) else getattr(choices[0], "__dict__", {})
    return raw.get("finish_reason") or raw.get("done_reason") or first.get("finish_reason")
