"""Bounded memory for LangChain agents and LangGraph graphs (extra ``langchain``).

With ``create_agent``::

    bounded = BoundedMemoryMiddleware(model, context_tokens=8192)
    agent = create_agent(model, tools, middleware=[bounded], checkpointer=...)

In a graph of your own::

    graph.add_node("remember", memory_node(model, context_tokens=8192))   # a node before the model's
    graph.add_node("chat", lambda state: {"messages": [model.invoke(with_memory(state))]})

Both keep two things in the state, and any checkpointer keeps those: the last messages, and ``memtrain_memory``, the
text that the model writes itself about all that went before. With ``ServedMemory(url)`` in the model's place, a running
``memtrain serve`` writes it. What is folded is removed from the state (earlier
checkpoints still have it).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NotRequired

from memtrain.errors import UserError
from memtrain.memory.cutting import Count
from memtrain.memory.texts import NO_MEMORY, UserTexts
from memtrain.plugs.common import (
    BYTES_A_TOKEN,
    MOST_BYTES_A_TOKEN,
    estimate_tokens,
    memory_agent,
    memory_within,
    missing,
    run_here,
    shown,
)
from memtrain.plugs.langchain_folding import Folded, fold
from memtrain.plugs.langchain_model import MESSAGE_OVERHEAD, LangChainModel, text_of, tokens_of
from memtrain.plugs.served import MemoryWriter, ServedMemory
from memtrain.settings import MemorySettings

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState
    from langchain.agents.middleware.internal_call_transformer import InternalCallTransformer, internal_call_metadata
    from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
    from langchain.chat_models import init_chat_model
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AnyMessage, BaseMessage, RemoveMessage, SystemMessage
    from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
    from langchain_core.utils.function_calling import convert_to_openai_tool
    from langgraph.graph import MessagesState
    from langgraph.types import Command
except ImportError as error:
    raise missing("langchain", error) from None

KEY = "memtrain_memory"
"""Where the memory is in the state."""


class BoundedAgentState(AgentState[Any]):
    """The state of an agent with bounded memory."""

    memtrain_memory: NotRequired[str]


class MemoryState(MessagesState):
    """The state of a graph with bounded memory: the last messages, and the memory of what went before."""

    memtrain_memory: NotRequired[str]


class _Bounded:
    """What the middleware and the node share: the budget, the texts, and the folding, with and without await."""

    def __init__(
        self,
        model: str | BaseChatModel | ServedMemory,
        context_tokens: int,
        memory: MemorySettings | None,
        keep: float,
        count: Count,
    ) -> None:
        if not 0 < keep <= 1:
            raise UserError(f"keep={keep} is not a share of the room for messages; give one above 0 and up to 1")
        self.context_tokens, self.keep, self.count = context_tokens, keep, count
        if isinstance(model, ServedMemory):
            self.memory = memory or MemorySettings(memory_tokens=model.memory_tokens)
            self.writers: dict[bool, MemoryWriter] = {False: model, True: model}
        else:
            self.memory = memory or memory_within(context_tokens, count)
            self.writers = {blocking: self._agent(model, blocking) for blocking in (False, True)}
        self.texts = UserTexts(self.memory)

    def _agent(self, model: str | BaseChatModel, blocking: bool) -> MemoryWriter:
        chat_model = init_chat_model(model) if isinstance(model, str) else model
        # What the model writes to itself belongs in no stream of the agent's words.
        about = {"lc_source": "memtrain", **internal_call_metadata()}
        config: RunnableConfig = {"tags": ["nostream"], "metadata": about}
        known: Any = {"context_tokens": self.context_tokens, "count": self.count, "config": config}
        return memory_agent(LangChainModel(chat_model, blocking=blocking, **known), self.memory)

    def fold(self, state: Mapping[str, Any], other_tokens: int) -> Folded | None:
        """What is left of a state; None where its messages fit beside the memory and ``other_tokens``."""
        if (tokens := self._tokens_to_keep(state, other_tokens)) is None:
            return None
        return run_here(lambda: self._fold(state, tokens, blocking=True))

    async def afold(self, state: Mapping[str, Any], other_tokens: int) -> Folded | None:
        """:meth:`fold` for ``await``."""
        tokens = self._tokens_to_keep(state, other_tokens)
        return None if tokens is None else await self._fold(state, tokens, blocking=False)

    async def _fold(self, state: Mapping[str, Any], tokens: int, blocking: bool) -> Folded:
        return await fold(self.writers[blocking], state.get(KEY) or NO_MEMORY, state["messages"], tokens, self.count)

    def _tokens_to_keep(self, state: Mapping[str, Any], other_tokens: int) -> int | None:
        """Tokens of messages that stay; None where all of them can."""
        taken = sum(tokens_of(message, self.count) for message in state["messages"])
        if taken + self._shown_tokens(state.get(KEY) or NO_MEMORY) + other_tokens <= self.context_tokens:
            return None
        # Where tokens are estimated by length, a memory of memory_tokens may count as more.
        header = self.count(shown(self.texts, "")) + MESSAGE_OVERHEAD
        largest = header + self.memory.memory_tokens * MOST_BYTES_A_TOKEN // BYTES_A_TOKEN
        room = self.context_tokens - other_tokens - largest
        if room < self.context_tokens // 8:
            raise UserError(
                f"system prompt and tools take {other_tokens} tokens and the memory up to {largest}, which leaves "
                f"too few of context_tokens={self.context_tokens}; raise it, or give memory= with fewer memory_tokens"
            )
        return int(room * self.keep)

    def _shown_tokens(self, memory: str) -> int:
        """Tokens that showing a memory takes."""
        return 0 if memory == NO_MEMORY else self.count(shown(self.texts, memory)) + MESSAGE_OVERHEAD

    def system(self, memory: str, system: SystemMessage | None) -> SystemMessage | None:
        """A system message with the memory after what it says already."""
        if memory == NO_MEMORY:
            return system
        before, after = "" if system is None else system.content, shown(self.texts, memory)
        if isinstance(before, str):
            return SystemMessage(f"{before}\n\n{after}" if before else after)
        return SystemMessage([*before, {"type": "text", "text": f"\n\n{after}"}])


class BoundedMemoryMiddleware(AgentMiddleware[BoundedAgentState, Any, Any]):
    """Keeps what an agent's model is shown within ``context_tokens``, however long the conversation is.

    System prompt, tools, memory and messages count; the reply does not. When they no longer fit, the oldest messages
    are folded into a memory that ``model`` writes itself, until ``keep`` of the room for messages is taken; the memory
    is shown at the end of the system prompt. A call of tools and its results go together. Put it last in
    ``middleware``: so it counts what the others make of the system prompt. It works with ``invoke`` and ``ainvoke``.
    """

    state_schema = BoundedAgentState
    transformers = (InternalCallTransformer,)

    def __init__(
        self,
        model: str | BaseChatModel | ServedMemory,
        *,
        context_tokens: int = 8192,
        memory: MemorySettings | None = None,
        keep: float = 0.5,
        count: Count = estimate_tokens,
    ) -> None:
        """``count`` gives the tokens of a text: by its length unless you have the tokenizer at hand.

        Raises :class:`UserError` where ``context_tokens`` leaves no room for a memory.
        """
        super().__init__()
        self._bounded = _Bounded(model, context_tokens, memory, keep, count)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Fold what no longer fits, then call the model."""
        folded = self._bounded.fold(*self._asked(request))
        return self._answered(request, folded, handler(self._shown(request, folded)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Fold what no longer fits, then call the model."""
        folded = await self._bounded.afold(*self._asked(request))
        return self._answered(request, folded, await handler(self._shown(request, folded)))

    def _asked(self, request: ModelRequest[Any]) -> tuple[dict[str, Any], int]:
        """What is to be fitted, and the tokens of what comes beside it."""
        count = self._bounded.count
        described = [tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in request.tools]
        tools = [json.dumps(tool, ensure_ascii=False, default=str) for tool in described]
        system = count(text_of(request.system_message)) + MESSAGE_OVERHEAD if request.system_message else 0
        state = {"messages": request.messages, KEY: request.state.get(KEY)}
        return state, system + sum(count(tool) for tool in tools)

    def _shown(self, request: ModelRequest[Any], folded: Folded | None) -> ModelRequest[Any]:
        memory = folded.memory if folded else str(request.state.get(KEY) or NO_MEMORY)
        messages = folded.messages if folded else request.messages
        return request.override(messages=messages, system_message=self._bounded.system(memory, request.system_message))

    @staticmethod
    def _answered(
        request: ModelRequest[Any], folded: Folded | None, response: ModelResponse[Any]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """The response, with the change of the state that the folding asks for."""
        if folded is None:
            return response
        return ExtendedModelResponse(response, Command(update=_update(folded, request.state["messages"])))


def memory_node(
    model: str | BaseChatModel | ServedMemory,
    *,
    context_tokens: int = 8192,
    reserved_tokens: int = 0,
    memory: MemorySettings | None = None,
    keep: float = 0.5,
    count: Count = estimate_tokens,
) -> Runnable[Any, dict[str, Any]]:
    """A node of a LangGraph graph that folds what no longer fits; its state needs the keys of :class:`MemoryState`.

    Runs before the node that calls the model, which shows :func:`with_memory`. ``reserved_tokens`` are those of a
    system prompt and tools that the model's node adds. Works sync and async. Raises as
    :class:`BoundedMemoryMiddleware`.
    """
    bounded = _Bounded(model, context_tokens, memory, keep, count)

    def update(state: Mapping[str, Any], folded: Folded | None) -> dict[str, Any]:
        return {} if folded is None else _update(folded, state["messages"])

    def node(state: Mapping[str, Any]) -> dict[str, Any]:
        return update(state, bounded.fold(state, reserved_tokens))

    async def anode(state: Mapping[str, Any]) -> dict[str, Any]:
        return update(state, await bounded.afold(state, reserved_tokens))

    return RunnableLambda(node, anode, name="memory")


def with_memory(
    state: Mapping[str, Any], system_prompt: str = "", settings: MemorySettings | None = None
) -> list[BaseMessage]:
    """The messages of a state as the model is to see them: system prompt and memory, then the last messages.

    ``settings`` are those that :func:`memory_node` was given as ``memory``, if any: they choose the words.
    """
    memory, texts = state.get(KEY) or NO_MEMORY, UserTexts(settings or MemorySettings())
    parts = [system_prompt, "" if memory == NO_MEMORY else shown(texts, memory)]
    text = "\n\n".join(part for part in parts if part)
    return [*([SystemMessage(text)] if text else []), *state["messages"]]


def _update(folded: Folded, messages: Sequence[AnyMessage]) -> dict[str, Any]:
    """The change of a state; only of messages that are in it, as other middleware may show more than that."""
    there = {message.id for message in messages}
    gone = [RemoveMessage(id=message.id) for message in folded.gone if message.id and message.id in there]
    changed = [message for message in folded.changed if message.id in there]
    return {"messages": [*gone, *changed], KEY: folded.memory}
