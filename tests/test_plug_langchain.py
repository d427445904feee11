"""Bounded memory in real LangChain agents and LangGraph graphs, in front of a deterministic model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from notebook_model import notebook_agent
from plug_models import assert_travelled, full_agent, is_write, run_example, said, small_talk, travel
from serve_here import serving

pytest.importorskip("langchain")
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt, wrap_model_call
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from pydantic import Field

from memtrain.client import MemoryClient
from memtrain.errors import UserError
from memtrain.memory.chat import ChatAgent
from memtrain.memory.text_model import Message
from memtrain.memory.texts import NO_MEMORY
from memtrain.plugs.common import estimate_tokens, memory_agent, memory_within
from memtrain.plugs.langchain import KEY, BoundedMemoryMiddleware, MemoryState, memory_node, with_memory
from memtrain.plugs.langchain_folding import fold
from memtrain.plugs.langchain_model import LangChainModel, text_of, tokens_of
from memtrain.plugs.served import ServedMemory
from memtrain.types import SamplingParams

BUDGET = 1500
ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


class NotebookChat(BaseChatModel):
    """The notebook as a chat model. "LOOK x" in the last message of a user makes it call the tool ``look_up``."""

    max_tokens: int | None = None
    seen: list[list[BaseMessage]] = Field(default_factory=list)
    limits: list[int | None] = Field(default_factory=list)
    tools: list[Any] = Field(default_factory=list)
    awaited: list[bool] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "notebook"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        self.tools[:] = [convert_to_openai_tool(one) for one in tools]
        return self

    def _answer(self, messages: list[BaseMessage]) -> AIMessage:
        self.seen.append(list(messages))
        self.limits.append(self.max_tokens)
        human = next((m for m in reversed(messages) if isinstance(m, HumanMessage)), None)
        shown = "\n".join(text_of(m) for m in messages)
        asked = [word for line in text_of(human).splitlines() if line.startswith("LOOK ") for word in line.split()[1:]]
        open_words = [word for word in asked if f"FACT {word}=" not in shown]
        if self.tools and not is_write(text_of(messages[-1])) and open_words:
            calls = [{"name": "look_up", "args": {"what": open_words[0]}, "id": f"call-{len(self.seen)}"}]
            return AIMessage("", tool_calls=calls)
        return AIMessage(said([(ROLES[m.type], text_of(m)) for m in messages]))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        self.awaited.append(False)
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.awaited.append(True)
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer = self._answer(messages)
        for word in answer.text.split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))


@tool
def look_up(what: str) -> str:
    """Look something up."""
    if what == "book":
        return "FACT book=found FACT inside=here " + small_talk(7, 3000)
    return f"FACT {what}=found " + small_talk(1, 20)


def prompt_tokens(messages: Sequence[BaseMessage], tools: Sequence[Any] = ()) -> int:
    return sum(tokens_of(m, estimate_tokens) for m in messages) + sum(estimate_tokens(json.dumps(t)) for t in tools)


def assert_sound(model: NotebookChat, budget: int = BUDGET) -> None:
    """Every call of the model was within the budget, its messages in an order that providers take."""
    assert model.seen
    for messages in model.seen:
        write = is_write(text_of(messages[-1]))
        assert prompt_tokens(messages, [] if write else model.tools) <= budget
        assert sum(m.type == "system" for m in messages) <= 1
        rest = [m for m in messages if m.type != "system"]
        assert isinstance(rest[0], HumanMessage)
        open_calls: list[str] = []
        for message in rest:
            if isinstance(message, ToolMessage):
                assert message.tool_call_id in open_calls
                open_calls.remove(message.tool_call_id)
            else:
                assert not open_calls
            if isinstance(message, AIMessage):
                open_calls += [str(call["id"]) for call in message.tool_calls]
        assert not open_calls


def agent_of(model: NotebookChat, tools: Sequence[Any] = (), saver: Any = None, **settings: Any) -> Any:
    return create_agent(
        model,
        list(tools),
        system_prompt="You are helpful.",
        middleware=[BoundedMemoryMiddleware(model, context_tokens=BUDGET, **settings)],
        checkpointer=saver or InMemorySaver(),
    )


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


def human(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


Say = Callable[[Any, str, str], dict[str, Any]]


def say(agent: Any, name: str, text: str) -> dict[str, Any]:
    return dict(agent.invoke(human(text), thread(name)))


def asay(agent: Any, name: str, text: str) -> dict[str, Any]:
    return dict(asyncio.run(agent.ainvoke(human(text), thread(name))))


def last(state: dict[str, Any]) -> str:
    return str(state["messages"][-1].text)


@pytest.mark.parametrize("speak", [say, asay])
def test_a_long_conversation_stays_within_its_budget(speak: Say) -> None:
    model, saver = NotebookChat(), InMemorySaver()
    agent = agent_of(model, saver=saver)
    for turn in range(45):
        fact = {0: "FACT name=Ada FACT hotel=Ritz ", 15: "FACT hotel=Savoy ", 30: "FACT hotel=Astoria "}.get(turn, "")
        state = speak(agent, "a", fact + small_talk(turn))
    assert_sound(model)
    assert any(is_write(text_of(messages[-1])) for messages in model.seen)
    assert set(model.awaited) == {speak is asay}
    assert len(state["messages"]) < 20
    assert "FACT hotel=Astoria" in state[KEY]
    assert "Ritz" not in state[KEY]
    assert "Savoy" not in state[KEY]
    again = agent_of(NotebookChat(), saver=saver)  # another process would open the checkpointer anew
    assert last(speak(again, "a", "hotel?")) == "Astoria"
    assert last(speak(again, "a", "name?")) == "Ada"
    assert last(speak(again, "b", "name?")) == "unknown"


def test_a_memory_that_would_grow_for_ever_stays_within_the_budget_too() -> None:
    model = NotebookChat()
    agent = agent_of(model)
    for turn in range(60):
        state = say(agent, "a", " ".join(f"FACT key-{turn}-{n}=a-rather-long-value" for n in range(4)))
    assert_sound(model)
    assert len(state[KEY]) > 500
    assert len(state[KEY]) <= 6 * memory_within(BUDGET, estimate_tokens).memory_tokens


def test_the_limit_of_a_memory_is_told_to_the_model() -> None:
    model = NotebookChat()
    agent = agent_of(model)
    for turn in range(8):
        say(agent, "a", small_talk(turn))
    wanted = memory_within(BUDGET, estimate_tokens).memory_tokens
    for messages, limit in zip(model.seen, model.limits, strict=True):
        assert limit == (wanted if is_write(text_of(messages[-1])) else None)


def test_threads_do_not_mix() -> None:
    model = NotebookChat()
    agent = agent_of(model)
    for turn in range(20):
        for name in ("a", "b", "c"):
            state = say(agent, name, (f"FACT me={name} " if turn == 0 else "") + small_talk(turn))
    for name in ("a", "b", "c"):
        state = say(agent, name, "me?")
        assert last(state) == name
        assert state[KEY] == f"FACT me={name}"
    assert_sound(model)


def test_concurrent_threads_do_not_mix() -> None:
    model = NotebookChat()
    agent = agent_of(model)

    async def one(name: str) -> str:
        for turn in range(12):
            text = (f"FACT me={name} " if turn == 0 else "") + small_talk(turn)
            await agent.ainvoke(human(text), thread(name))
        return last(await agent.ainvoke(human("me?"), thread(name)))

    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*(one(f"n{number}") for number in range(8))))

    assert asyncio.run(all_of_them()) == [f"n{number}" for number in range(8)]
    assert_sound(model)


@pytest.mark.parametrize("speak", [say, asay])
def test_calls_of_tools_stay_with_their_results(speak: Say) -> None:
    model = NotebookChat()
    agent = agent_of(model, [look_up])
    for turn in range(10):
        state = speak(agent, "a", f"LOOK x{turn} y{turn} z{turn}\n" + small_talk(turn, 20))
    assert_sound(model)
    assert "FACT x0=found" in state[KEY]
    assert last(speak(agent, "a", "y3?")) == "found"


def test_many_calls_within_one_turn_are_folded_too() -> None:
    model = NotebookChat()
    agent = agent_of(model, [look_up])
    words = " ".join(f"w{number}" for number in range(25))
    state = say(agent, "a", f"FACT goal=all\nLOOK {words}")
    # The question stays in sight, so that the model knows what it works on.
    assert all(any("goal=all" in text_of(m) for m in seen) for seen in model.seen if not is_write(text_of(seen[-1])))
    assert_sound(model)
    assert "FACT w0=found" in state[KEY]


@pytest.mark.parametrize("speak", [say, asay])
def test_what_is_too_long_by_itself_is_read_into_the_memory(speak: Say) -> None:
    model = NotebookChat()
    agent = agent_of(model, [look_up])
    pasted = f"FACT first=1 {small_talk(1, 1500)}\n\n{small_talk(2, 1500)} FACT second=2\n\nWhat do you think of it"
    state = speak(agent, "a", pasted)
    assert_sound(model)
    shown = text_of(state["messages"][0])
    assert shown.startswith("What do you think of it")
    assert "it was read" in shown
    state = speak(agent, "a", "LOOK book")
    assert_sound(model)
    kept = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert all(tokens_of(m, estimate_tokens) < BUDGET // 2 for m in kept)
    for key, value in {"first": "1", "second": "2", "inside": "here"}.items():
        assert last(speak(agent, "a", f"{key}?")) == value


def test_pictures_count_and_outlive_the_text_beside_them() -> None:
    model = NotebookChat()
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}
    agent: Any = create_agent(
        model, [], middleware=[BoundedMemoryMiddleware(model, context_tokens=4000)], checkpointer=InMemorySaver()
    )
    long = [{"type": "text", "text": f"FACT in=text {small_talk(1, 2000)}\n\nWhat is it"}, picture]
    state = agent.invoke({"messages": [HumanMessage(long)]}, thread("a"))
    assert_sound(model, 4000)
    assert state["messages"][0].content[1] == picture
    assert text_of(state["messages"][0]).startswith("What is it")
    assert last(say(agent, "a", "in?")) == "text"


def test_invoke_works_where_a_loop_runs_already() -> None:
    agent = agent_of(NotebookChat())

    async def notebook_cell() -> str:
        for turn in range(10):
            say(agent, "a", ("FACT name=Ada " if turn == 0 else "") + small_talk(turn))
        return last(say(agent, "a", "name?"))

    assert asyncio.run(notebook_cell()) == "Ada"


def test_what_the_model_writes_to_itself_is_in_no_stream() -> None:
    model = NotebookChat()
    agent = agent_of(model)
    for turn in range(9):
        told = [piece.text for piece, _ in agent.stream(human(small_talk(turn)), thread("a"), stream_mode="messages")]
        assert "Nothing." not in "".join(told)
        assert told
    assert any(is_write(text_of(messages[-1])) for messages in model.seen)


def test_other_middleware_may_add_to_the_prompt_and_show_more() -> None:
    """What it adds counts; what it shows without keeping it in the state is not taken out of the state."""

    @dynamic_prompt
    def wordy(request: ModelRequest[Any]) -> str:
        return "Be brief. " * 60

    @wrap_model_call
    def reminder(request: ModelRequest[Any], handler: Any) -> Any:
        return handler(
            request.override(messages=[HumanMessage("Remember the rules.", id="not-kept"), *request.messages])
        )

    model = NotebookChat()
    bounded = BoundedMemoryMiddleware(model, context_tokens=BUDGET)
    agent: Any = create_agent(model, [], middleware=[wordy, reminder, bounded], checkpointer=InMemorySaver())
    for turn in range(12):
        state = say(agent, "a", ("FACT name=Ada " if turn == 0 else "") + small_talk(turn))
    assert_sound(model)
    assert last(say(agent, "a", "name?")) == "Ada"
    assert KEY in state
    replies = [seen for seen in model.seen if not is_write(text_of(seen[-1]))]
    assert all("Be brief." in text_of(seen[0]) for seen in replies)


def test_a_memory_can_be_given_and_edited() -> None:
    agent = agent_of(NotebookChat())
    agent.invoke({**human("hello"), KEY: "FACT hotel=Ritz"}, thread("a"))
    assert last(say(agent, "a", "hotel?")) == "Ritz"
    agent.update_state(thread("a"), {KEY: "FACT hotel=Savoy"})
    agent.update_state(thread("a"), {"messages": [HumanMessage("so be it")]})
    assert agent.get_state(thread("a")).values[KEY] == "FACT hotel=Savoy"


# ---- graphs without create_agent ------------------------------------------------------------------------------------


def graph_of(model: NotebookChat, saver: Any) -> Any:
    graph: Any = StateGraph(MemoryState)
    graph.add_node("remember", memory_node(model, context_tokens=BUDGET, reserved_tokens=40))
    graph.add_node("chat", lambda state: {"messages": [model.invoke(with_memory(state, "You are helpful."))]})
    graph.add_edge(START, "remember")
    graph.add_edge("remember", "chat")
    graph.add_edge("chat", END)
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("speak", [say, asay])
def test_a_graph_of_ones_own_has_the_node(speak: Say) -> None:
    model, saver = NotebookChat(), InMemorySaver()
    graph = graph_of(model, saver)
    for turn in range(25):
        fact = {0: "FACT name=Ada FACT hotel=Ritz ", 12: "FACT hotel=Savoy "}.get(turn, "")
        state = speak(graph, "a", fact + small_talk(turn))
    assert_sound(model)
    assert len(state["messages"]) < 20
    assert "Ritz" not in state[KEY]
    assert last(speak(graph_of(NotebookChat(), saver), "a", "hotel?")) == "Savoy"
    assert last(speak(graph, "b", "hotel?")) == "unknown"


# ---- a memory written by memtrain serve -----------------------------------------------------------------------------


@pytest.mark.parametrize("speak", [say, asay])
def test_a_server_may_write_the_memory(tmp_path: Path, speak: Say) -> None:
    model = NotebookChat()
    with serving(notebook_agent()[0], tmp_path / "sessions.db") as url:
        bounded = BoundedMemoryMiddleware(ServedMemory(url, memory_tokens=100), context_tokens=BUDGET)
        agent: Any = create_agent(model, [look_up], middleware=[bounded], checkpointer=InMemorySaver())
        for turn in range(20):
            fact = {0: "FACT name=Ada FACT hotel=Ritz ", 8: "FACT hotel=Savoy "}.get(turn, "")
            state = speak(agent, "a", fact + small_talk(turn))
        assert_sound(model)
        assert not any(is_write(text_of(messages[-1])) for messages in model.seen)
        assert state[KEY] == "FACT name=Ada\nFACT hotel=Savoy"
        assert last(speak(agent, "a", "hotel?")) == "Savoy"
        speak(agent, "a", "LOOK book")
        assert last(speak(agent, "a", "inside?")) == "here"
        assert_sound(model)
        with MemoryClient(url) as client:
            assert list(client.sessions()) == []
    with pytest.raises(UserError, match="memtrain serve"):
        speak(agent, "a", small_talk(1, 1000))


# ---- examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "served"), [("langchain_agent.py", False), ("langgraph_node.py", True)])
def test_the_example_runs_as_it_stands(tmp_path: Path, name: str, served: bool) -> None:
    pytest.importorskip("langchain_openai")
    with serving(full_agent(), tmp_path / "chat.db") as url, serving(notebook_agent()[0], tmp_path / "m.db") as memory:
        more = ("--memory", memory) if served else ()
        assert_travelled(run_example(name, "--url", f"{url}/v1", "--tokens", "1500", *more, said=travel()))


# ---- folding --------------------------------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn) -> list[AnyMessage]:
    """Any that a state may hold: calls of several tools, no user at all, very long texts, a tool without its call."""
    found: list[AnyMessage] = []
    for number in range(draw(st.integers(1, 12))):
        words = draw(st.sampled_from([0, 3, 40, 400]))
        text = f"FACT k{number}={number} " + "blah " * words
        kind = draw(st.sampled_from(["human", "ai", "call", "stray"]))
        if kind == "human":
            found.append(HumanMessage(text, id=f"h{number}"))
        elif kind == "ai":
            found.append(AIMessage(text, id=f"a{number}"))
        elif kind == "stray":
            found.append(ToolMessage(text, tool_call_id="none", id=f"s{number}"))
        else:
            ids = [f"c{number}-{n}" for n in range(draw(st.integers(1, 3)))]
            calls: Any = [{"name": "look_up", "args": {"what": i}, "id": i} for i in ids]
            found.append(AIMessage("", tool_calls=calls, id=f"a{number}"))
            found += [ToolMessage(text, tool_call_id=i, id=f"t{i}") for i in ids]
    return found


@settings(max_examples=60, deadline=None)
@given(conversations(), st.integers(400, 3000))
def test_any_conversation_is_folded_to_fit(messages: list[AnyMessage], tokens: int) -> None:
    model = LangChainModel(NotebookChat(), context_tokens=BUDGET, blocking=True)
    agent = memory_agent(model, memory_within(BUDGET, estimate_tokens))
    folded = asyncio.run(fold(agent, NO_MEMORY, messages, tokens, estimate_tokens))
    assert prompt_tokens(folded.messages) <= tokens
    kept, gone = [m.id for m in folded.messages], [m.id for m in folded.gone]
    assert sorted([*kept, *gone]) == sorted(m.id for m in messages)
    assert kept == [m.id for m in messages if m.id in kept]
    humans = [m.id for m in messages if isinstance(m, HumanMessage)]
    assert not humans or humans[-1] in kept
    assert messages[-1].id in kept
    for message in messages:
        if isinstance(message, AIMessage):
            group = {message.id, *(f"t{call['id']}" for call in message.tool_calls)}
            assert group <= set(kept) or group <= set(gone)
    facts = folded.memory + "\n".join(text_of(m) for m in folded.messages)
    numbers = {int(str(m.id).strip("hatsc").split("-")[0]) for m in messages if text_of(m)}
    assert all(f"k{number}={number}" in facts for number in numbers)


# ---- the adapter ----------------------------------------------------------------------------------------------------


def test_any_chat_model_is_a_text_model(tmp_path: Path) -> None:
    """langchain-openai in front of the real server: limit, stop text, pieces, usage."""
    openai = pytest.importorskip("langchain_openai")
    with serving(full_agent(), tmp_path / "sessions.db") as url:
        chat = openai.ChatOpenAI(model="notebook", base_url=f"{url}/v1", api_key="none", stream_usage=True)

        async def check(model: LangChainModel) -> None:
            asked, pieces = [Message("user", "FACT a=1 FACT b=2 a? b?")], list[str]()
            whole = await model.complete(asked, SamplingParams(20))
            assert (whole.text, whole.stop_reason) == ("1 and 2", "stop")
            assert whole.completion_tokens > 0
            streamed = await model.complete(asked, SamplingParams(20), pieces.append)
            assert (streamed.text, "".join(pieces)) == ("1 and 2", "1 and 2")
            assert (await model.complete(asked, SamplingParams(1))).stop_reason == "length"
            assert (await model.complete(asked, SamplingParams(20, stop=(" and",)))).text == "1"

        asyncio.run(check(LangChainModel(chat)))
        asyncio.run(check(LangChainModel(chat, blocking=True)))
        asyncio.run(check(LangChainModel(chat, blocking=True)))  # a loop that has ended leaves nothing behind
        assert chat.max_tokens is None


def test_a_reply_is_bounded_whatever_the_model_does() -> None:
    class Chatterbox(NotebookChat):
        def _answer(self, messages: list[BaseMessage]) -> AIMessage:
            return AIMessage("<think>hm</think>" + "blah " * 10_000)

    reply = asyncio.run(LangChainModel(Chatterbox()).complete([Message("user", "x")], SamplingParams(10)))
    assert reply.stop_reason == "length"
    assert reply.text.startswith("blah")
    assert len(reply.text) <= 60


@pytest.mark.parametrize(
    ("budget", "more", "said"),
    [
        (300, {}, "context_tokens=300 leaves no room"),
        (2000, {"keep": 0.0}, "keep=0.0"),
        (2000, {"keep": 2.0}, "keep=2.0"),
    ],
)
def test_settings_that_cannot_be_are_said_so(budget: int, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        BoundedMemoryMiddleware(NotebookChat(), context_tokens=budget, **more)


def test_a_system_prompt_that_leaves_no_room_is_said_so() -> None:
    model = NotebookChat()
    agent: Any = create_agent(
        model, [], system_prompt="blah " * 800, middleware=[BoundedMemoryMiddleware(model, context_tokens=BUDGET)]
    )
    with pytest.raises(UserError, match="system prompt and tools take"):
        agent.invoke(human(small_talk(1)))


def test_the_least_budget_that_is_named_is_enough() -> None:
    with pytest.raises(UserError, match=r"give at least (\d+)") as caught:
        memory_within(200, estimate_tokens)
    least = int(str(caught.value).partition("give at least ")[2].partition(",")[0])
    memory_within(least, estimate_tokens)
    assert isinstance(
        memory_agent(LangChainModel(NotebookChat(), context_tokens=least), memory_within(least, estimate_tokens)),
        ChatAgent,
    )
