"""Which messages of a LangChain conversation are folded into the memory so that the rest fits a budget.

Oldest first. The last message of the user stays, so that the model knows what it works on; a call of tools and its
results go or stay together. What is still too long by itself (a pasted book, a page that a tool has fetched) is read
into the memory in chunks, and a note of that takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.errors import UserError
from memtrain.memory.chat import split_request
from memtrain.memory.cutting import Count, split_by_count
from memtrain.memory.text_model import Message
from memtrain.plugs.common import missing
from memtrain.plugs.langchain_model import as_messages, other_parts, text_of, tokens_of
from memtrain.plugs.served import MemoryWriter

try:
    from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
except ImportError as error:
    raise missing("langchain", error) from None

READ_NOTE = "(A text of {tokens} tokens stood here; it was read, and the memory holds what was noted.)"
"""Stands for a message that was too long."""
LEAST_SHOWN = 32
"""Tokens of a long message that are shown with the note, at least."""


@dataclass(frozen=True)
class Folded:
    """What is left of a conversation."""

    memory: str
    """The memory, with what has gone folded in."""
    messages: list[AnyMessage]
    """What is left, in order."""
    gone: list[AnyMessage]
    """What was folded."""
    changed: list[AnyMessage]
    """Those of ``messages`` whose text was too long and is another now."""


async def fold(writer: MemoryWriter, memory: str, messages: Sequence[AnyMessage], tokens: int, count: Count) -> Folded:
    """Fold the oldest messages into the memory until the rest takes at most ``tokens``.

    Raises :class:`UserError` where what must stay cannot be made to fit.
    """
    groups = grouped(messages)
    kept = _kept(groups, tokens, count)
    gone = [group for place, group in enumerate(groups) if place not in kept]
    said = [message for group in gone for message in as_messages(group)]
    if said:
        memory, _ = await writer.remember(memory, said)
    left = [message for place in kept for message in groups[place]]
    changed: dict[int, AnyMessage] = {}
    asked = next((text_of(message) for message in reversed(left) if isinstance(message, HumanMessage)), "")
    while sum(tokens_of(message, count) for message in left) > tokens:
        place = _longest(left, changed, count)
        if place is None:
            raise UserError(
                f"the last message of the user and what a tool was last asked take more than the {tokens} tokens that "
                "context_tokens leaves for messages; raise context_tokens"
            )
        shown = max(LEAST_SHOWN, tokens // (4 * len(left)))
        memory, left[place] = await _read(writer, memory, left[place], asked, shown, count)
        changed[place] = left[place]
    flat = [message for group in gone for message in group]
    return Folded(memory, left, flat, [changed[place] for place in sorted(changed)])


def grouped(messages: Sequence[AnyMessage]) -> list[list[AnyMessage]]:
    """Messages in order, a call of tools together with its results."""
    groups: list[list[AnyMessage]] = []
    for message in messages:
        caller = groups[-1][0] if groups else None
        called = {call["id"] for call in caller.tool_calls} if isinstance(caller, AIMessage) else ()
        if isinstance(message, ToolMessage) and message.tool_call_id in called:
            groups[-1].append(message)
        else:
            groups.append([message])
    return groups


def _kept(groups: list[list[AnyMessage]], tokens: int, count: Count) -> list[int]:
    """Places of the last groups that fit: always the last one and the last message of the user; a user's is first.

    A result whose call is not there stays only where it is the last message: no provider takes it.
    """
    humans = [place for place, group in enumerate(groups) if isinstance(group[0], HumanMessage)]
    anchor = humans[-1] if humans else len(groups) - 1
    must = {anchor, len(groups) - 1}
    room = tokens - sum(_size(groups[place], count) for place in must)
    start = len(groups) - 1
    for place in reversed(range(len(groups) - 1)):
        if place not in must:
            room -= _size(groups[place], count)
            if room < 0:
                break
        start = place
    if start <= anchor:  # a conversation that begins with the model's words is not taken by every provider
        start = next((place for place in humans if place >= start), anchor)
    stray = {place for place, group in enumerate(groups) if isinstance(group[0], ToolMessage)}
    return [place for place in range(len(groups)) if place in must or (place >= start and place not in stray)]


def _size(group: Sequence[BaseMessage], count: Count) -> int:
    return sum(tokens_of(message, count) for message in group)


def _longest(messages: Sequence[AnyMessage], changed: dict[int, AnyMessage], count: Count) -> int | None:
    """Where the longest text stands that has not been shortened yet and would be shorter as a note."""
    least = count(READ_NOTE) + LEAST_SHOWN
    sizes = [
        (count(text_of(message)), place)
        for place, message in enumerate(messages)
        if place not in changed and count(text_of(message)) > least
    ]
    return max(sizes)[1] if sizes else None


async def _read(
    writer: MemoryWriter, memory: str, message: AnyMessage, asked: str, shown: int, count: Count
) -> tuple[str, AnyMessage]:
    """Read a long message into the memory; also gives what is shown in its place."""
    text = text_of(message)
    document, request = split_request(text, count) if isinstance(message, HumanMessage) else (text, "")
    question = request if isinstance(message, HumanMessage) else asked
    if isinstance(message, AIMessage):
        memory, _ = await writer.remember(memory, [Message("assistant", text)])
    else:
        memory, _ = await writer.read(memory, document, question)
    begin = split_by_count(request or text, shown, count)[0].strip()
    note = READ_NOTE.replace("{tokens}", str(count(text)))
    dots = "" if begin == request else "..."
    left: Any = f"{begin}{dots}\n\n{note}"
    if others := other_parts(message):
        left = [{"type": "text", "text": left}, *others]
    return memory, message.model_copy(update={"content": left})
