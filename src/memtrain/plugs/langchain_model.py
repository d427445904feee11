"""Any LangChain chat model as a :class:`~memtrain.memory.text_model.TextModel`, and LangChain's messages as ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from memtrain.memory.cutting import Count
from memtrain.memory.text_model import Message, OnText, Reply
from memtrain.plugs.common import estimate_tokens, finished, missing, sized
from memtrain.types import SamplingParams

try:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_core.runnables import RunnableConfig
except ImportError as error:
    raise missing("langchain", error) from None

CONTEXT_TOKENS = 8192
"""Window of a model that does not say."""
MESSAGE_OVERHEAD = 8
"""Tokens that a chat template adds to a message, by rule of thumb."""
OTHER_TOKENS = 1024
"""Tokens of an image, a sound or a file in a message, by rule of thumb."""
KINDS = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


class LangChainModel:
    """A chat model of LangChain, asked for text.

    The limit of a reply is set in the field where the model's class keeps it. The temperature stays the chat model's
    own unless one is given: not every provider takes one.
    """

    def __init__(
        self,
        chat_model: BaseChatModel,
        *,
        context_tokens: int | None = None,
        count: Count = estimate_tokens,
        temperature: float | None = None,
        config: RunnableConfig | None = None,
        blocking: bool = False,
    ) -> None:
        """``blocking`` calls the model's synchronous methods; then :meth:`complete` never awaits."""
        profile = getattr(chat_model, "profile", None) or {}
        self.chat_model, self.count = chat_model, count
        self.context_tokens: int = context_tokens or profile.get("max_input_tokens") or CONTEXT_TOKENS
        self.temperature, self.config, self.blocking = temperature, config, blocking

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, on_text: OnText | None = None
    ) -> Reply:
        """See :meth:`TextModel.complete`; what the provider raises goes through."""
        model = sized(self.chat_model, params.max_tokens, self.temperature)
        said = [KINDS[message.role](message.content) for message in messages]
        stop = list(params.stop) or None
        whole: Any = None
        if on_text is None:
            if self.blocking:
                whole = model.invoke(said, self.config, stop=stop)
            else:
                whole = await model.ainvoke(said, self.config, stop=stop)
        elif self.blocking:
            for piece in model.stream(said, self.config, stop=stop):
                on_text(text_of(piece))
                whole = piece if whole is None else whole + piece
        else:
            async for piece in model.astream(said, self.config, stop=stop):
                on_text(text_of(piece))
                whole = piece if whole is None else whole + piece
        about = getattr(whole, "response_metadata", {})
        reason = about.get("finish_reason") or about.get("stop_reason") or about.get("done_reason")
        text, stop_reason = finished(text_of(whole), reason, params.max_tokens)
        usage = getattr(whole, "usage_metadata", None) or {}
        return Reply(
            text,
            usage.get("input_tokens") or sum(self.count(message.content) for message in messages),
            usage.get("output_tokens") or self.count(text),
            stop_reason,
        )


def text_of(message: Any) -> str:
    """The text of a message, other content left out."""
    content = getattr(message, "content", message)
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, str) else part.get("text", "") for part in content or ()]
    return "".join(part for part in parts if isinstance(part, str))


def other_parts(message: BaseMessage) -> list[dict[str, Any]]:
    """What a message holds besides text: images, sounds, files, thoughts."""
    content = message.content if isinstance(message.content, list) else []
    return [part for part in content if isinstance(part, dict) and part.get("type") != "text"]


def tokens_of(message: BaseMessage, count: Count) -> int:
    """Tokens of one message: text, calls of tools, everything else by rule of thumb."""
    tokens = MESSAGE_OVERHEAD + count(text_of(message))
    for part in other_parts(message):
        if part.get("type") in ("reasoning", "thinking", "redacted_thinking"):
            tokens += count(json.dumps(part, ensure_ascii=False, default=str))
        elif part.get("type") not in ("tool_use", "tool_call", "function_call", "input_json_delta"):  # counted below
            tokens += OTHER_TOKENS
    if isinstance(message, AIMessage):
        tokens += sum(MESSAGE_OVERHEAD + count(_call_text(call)) for call in message.tool_calls)
    return tokens


def as_messages(group: Sequence[AnyMessage]) -> list[Message]:
    """A message, or a call of tools with its results, as the memory is told of it."""
    first, *results = group
    text = text_of(first)
    if isinstance(first, HumanMessage):
        return [Message("user", text or "(not a text)")]
    if isinstance(first, SystemMessage):
        return [Message("system", text)] if text else []
    if isinstance(first, AIMessage):
        found = {result.tool_call_id: text_of(result) for result in results if isinstance(result, ToolMessage)}
        for call in first.tool_calls:
            text += f"\n(called {_call_text(call)} and got: {found.get(call['id'] or '', 'nothing')})"
    elif isinstance(first, ToolMessage):
        text = f"(got from a tool: {text})"
    return [Message("assistant", text.strip())] if text.strip() else []


def _call_text(call: Any) -> str:
    return f"{call['name']}({json.dumps(call['args'], ensure_ascii=False, default=str)})"
