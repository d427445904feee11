"""The chat agent: a conversation of any length with a bounded memory.

Each turn sees the memory and as many of the last messages as a token budget allows, replies, and writes the next memory
from what was said, m[t] from (m[t-1], exchange): the reader's update (MemAgent, arXiv 2507.02259, section 2) with an
exchange in the chunk's place. A message too long for a turn is read in chunks first. Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from memtrain.errors import UserError
from memtrain.memory.boxed import last_boxed
from memtrain.memory.cutting import last_tokens, split_by_count
from memtrain.memory.text_model import Message, Reply, TextModel
from memtrain.memory.texts import NO_MEMORY, UserTexts
from memtrain.settings import ChatSettings, MemorySettings
from memtrain.types import SamplingParams, StopReason

MESSAGE_TOKENS = 8
"""What a chat template adds to a message, at most, by rule of thumb."""
ASK_TOKENS = 256
"""A paragraph at the end (or beginning) of a long message that is no longer than this is what is asked about it."""

_LOOP = re.compile(r"\b(\w.{3,119}?)(?:[\s;,.]+\1){2,}", re.DOTALL)
LONG_CHARS = 20_000
"""Counting the tokens of a longer text takes milliseconds and more."""
T = TypeVar("T")


@dataclass(frozen=True)
class Conversation:
    """All that is kept between two turns."""

    memory: str = NO_MEMORY
    recent: tuple[Message, ...] = ()
    """The last messages, no more than fit into a turn."""


@dataclass(frozen=True)
class Call:
    """What one call of the model took."""

    kind: Literal["read", "reply", "write", "answer"]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class ChatTurn:
    """One turn that is done."""

    conversation: Conversation
    """After it."""
    reply: str
    calls: tuple[Call, ...]
    """In the order they were made."""
    stop_reason: StopReason
    """The reply's."""


@dataclass(frozen=True)
class Reading:
    """A chunk of a long input has been read."""

    chunk: int
    """Counted from 1."""
    chunks: int
    memory: str
    """After it."""


@dataclass(frozen=True)
class Spoken:
    """A piece of the reply."""

    text: str


@dataclass(frozen=True)
class Remembered:
    """The memory after the turn."""

    memory: str


OnEvent = Callable[[Reading | Spoken | Remembered], None]


def ignore(event: Reading | Spoken | Remembered) -> None:
    """For who wants the result alone."""


class ChatAgent:
    """Turns of conversations; it keeps nothing itself, so one serves them all at once."""

    def __init__(self, model: TextModel, memory: MemorySettings, chat: ChatSettings) -> None:
        """Raises :class:`UserError` where a turn may not fit the model's window, naming the keys to lower."""
        self.model, self.memory, self.chat = model, memory, chat
        self.texts = UserTexts(memory)
        fixed = self.model.count(self.texts.chat_write("", "")) + self.model.count(self.texts.write("", "", ""))
        needs = {
            "reply": ("chat.context_tokens", chat.context_tokens, "chat.reply_tokens", chat.reply_tokens),
            "write": (
                *("memory.chunk_tokens", memory.chunk_tokens + fixed),
                *("memory.memory_tokens", 2 * memory.memory_tokens + ASK_TOKENS),
            ),
        }
        for kind, (first, a, second, b) in needs.items():
            if a + b > model.context_tokens:
                raise UserError(
                    f"a {kind} of the chat agent can take {a + b} tokens but the model's window is "
                    f"{model.context_tokens}; lower {first} or {second}"
                )

    async def turn(
        self,
        conversation: Conversation,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: tuple[str, ...] = (),
        on_event: OnEvent = ignore,
    ) -> ChatTurn:
        """Reply to the new ``messages`` of a turn and write the next memory.

        System messages are instructions for this turn. Of several others, those before the last one are remembered
        first (a conversation that began elsewhere). ``max_tokens`` may lower ``chat.reply_tokens``.
        Raises :class:`UserError` where nothing was said or the instructions leave no room.
        """
        instructions = "\n\n".join(message.content for message in messages if message.role == "system")
        said = [message for message in messages if message.role != "system"]
        if not said or not said[-1].content.strip():
            raise UserError("there is nothing to reply to: the last of 'messages' must be a user's and not be blank")
        memory, recent, calls = conversation.memory, [*conversation.recent, *said[:-1]], list[Call]()
        if said[:-1]:
            memory, more = await self.remember(memory, said[:-1], on_event)
            calls += more
        last, more = said[-1], ()
        if await _apart(last.content, lambda: self._tokens([last])) > self._message_room(instructions):
            document, asked = await _apart(last.content, lambda: split_request(last.content, self.model.count))
            memory, more = await self.read(memory, document, asked, on_event)
            shown = f"{asked}\n\n(A text of {len(more)} sections was read; the memory holds what was noted.)"
            last = replace(last, content=shown.strip())
        calls += more
        shown_messages = self._prompt(instructions, memory, recent, last)
        params = SamplingParams(
            min(max_tokens or self.chat.reply_tokens, self.chat.reply_tokens),
            self.chat.temperature if temperature is None else temperature,
            1.0 if top_p is None else top_p,
            stop,
        )
        reply = await self.model.complete(shown_messages, params, lambda piece: on_event(Spoken(piece)))
        calls.append(_call("reply", reply))
        exchange = [last, Message("assistant", reply.text)]
        memory, more = await self._fold(memory, exchange)
        on_event(Remembered(memory))
        kept = self._fitting([*recent, *exchange], self.chat.context_tokens)
        return ChatTurn(Conversation(memory, tuple(kept)), reply.text, (*calls, *more), reply.stop_reason)

    async def read(
        self, memory: str, text: str, question: str = "", on_event: OnEvent = ignore
    ) -> tuple[str, tuple[Call, ...]]:
        """Read a text of any length, chunk by chunk, into the memory. ``question`` says what it is read for."""
        question = last_tokens(question, ASK_TOKENS, self.model.count)
        chunks = await _apart(text, lambda: split_by_count(text, self.memory.chunk_tokens, self.model.count))
        calls = []
        for number, chunk in enumerate(chunks, 1):
            memory, call = await self._write("read", self.texts.write(question, chunk, memory), memory)
            calls.append(call)
            on_event(Reading(number, len(chunks), memory))
        return memory, tuple(calls)

    async def remember(
        self, memory: str, messages: Sequence[Message], on_event: OnEvent = ignore
    ) -> tuple[str, tuple[Call, ...]]:
        """Fold finished messages into the memory, in as many pieces as their length asks for."""
        return await self._fold(memory, messages, on_event)

    async def ask(self, memory: str, question: str) -> tuple[str, Call]:
        """Answer a question from the memory alone. Raises :class:`UserError` for a question longer than a chunk."""
        if not question.strip() or self.model.count(question) > self.memory.chunk_tokens:
            raise UserError(f"'question' must have 1 to {self.memory.chunk_tokens} tokens (memory.chunk_tokens)")
        params = SamplingParams(self.memory.answer_tokens, 0.0)
        reply = await self.model.complete([Message("user", self.texts.answer(question, memory))], params)
        text = without_thoughts(reply.text)
        boxed = last_boxed(text)
        return (text if boxed is None else boxed), _call("answer", reply)

    # ---- below ------------------------------------------------------------------------------------------------------

    async def _fold(
        self, memory: str, messages: Sequence[Message], on_event: OnEvent = ignore
    ) -> tuple[str, tuple[Call, ...]]:
        longest = max((message.content for message in messages), key=len, default="")
        pieces = await _apart(longest, lambda: _packed(messages, self.memory.chunk_tokens, self.model.count))
        calls = []
        for number, piece in enumerate(pieces, 1):
            memory, call = await self._write("write", self.texts.chat_write(piece, memory), memory)
            calls.append(call)
            on_event(Reading(number, len(pieces), memory))
        return memory, tuple(calls)

    async def _write(self, kind: Literal["read", "write"], prompt: str, memory: str) -> tuple[str, Call]:
        """The next memory; a write that says nothing leaves the old one, which else would be lost for good."""
        params = SamplingParams(self.memory.memory_tokens, self.chat.write_temperature)
        reply = await self.model.complete([Message("user", prompt)], params)
        text = without_thoughts(reply.text)
        return (without_loops(text) if self.chat.drop_loops else text) or memory, _call(kind, reply)

    def _prompt(self, instructions: str, memory: str, recent: Sequence[Message], last: Message) -> list[Message]:
        """What the reply is made from: always about ``chat.context_tokens`` long once so much has been said."""
        system = Message("system", self.texts.chat_system(memory, instructions))
        room = self.chat.context_tokens - self._tokens([system, last])
        return [system, *self._fitting(recent, room), last]

    def _fitting(self, messages: Sequence[Message], tokens: int) -> list[Message]:
        """The last messages that fit, the oldest of them cut to what is left of the budget."""
        fitting: list[Message] = []
        for message in reversed(messages):
            size = self._tokens([message])
            if size > tokens:
                rest = last_tokens(message.content, tokens - MESSAGE_TOKENS, self.model.count)
                return [Message(message.role, rest), *fitting] if rest else fitting
            fitting.insert(0, message)
            tokens -= size
        return fitting

    def _message_room(self, instructions: str) -> int:
        """Tokens a message may have to be shown whole: half of what instructions and a full memory leave."""
        fixed = self._tokens([Message("system", self.texts.chat_system("", instructions))]) + self.memory.memory_tokens
        room = self.chat.context_tokens - fixed
        if room < self.chat.context_tokens // 4:
            raise UserError(
                f"system message and memory take up to {fixed} of the {self.chat.context_tokens} tokens of a turn "
                "(chat.context_tokens); shorten the system message, or let the server be started with more"
            )
        return room // 2

    def _tokens(self, messages: Sequence[Message]) -> int:
        return sum(self.model.count(message.content) + MESSAGE_TOKENS for message in messages)


def split_request(text: str, count: Callable[[str], int]) -> tuple[str, str]:
    """A long message as (what is to be read, what is asked about it).

    The request is the last paragraph if that is short, else the first one, else there is none and all is to be read.
    """
    head, _, tail = text.strip().rpartition("\n\n")
    if head.strip() and count(tail) <= ASK_TOKENS:
        return head.strip(), tail.strip()
    head, _, tail = text.strip().partition("\n\n")
    if tail.strip() and count(head) <= ASK_TOKENS:
        return tail.strip(), head.strip()
    return text, ""


def without_thoughts(text: str) -> str:
    """What stands after a thinking block; nothing where the block was never closed."""
    text = text.rpartition("</think>")[2]
    return "" if "<think>" in text else text.strip()


def without_loops(text: str) -> str:
    """A phrase (4 to 120 characters) that comes three times or more in a row is kept once, whatever it ends in."""
    found = _LOOP.sub(r"\1", text)
    return found.rstrip(" ;,") if found != text else text


async def _apart(text: str, work: Callable[[], T]) -> T:
    """Work that takes long where the text is long: then in a thread, so that the others are not kept waiting."""
    return await asyncio.to_thread(work) if len(text) > LONG_CHARS else work()


def _packed(messages: Sequence[Message], tokens: int, count: Callable[[str], int]) -> list[str]:
    """Messages as texts of at most ``tokens``: whole messages side by side, a longer one in pieces of its own."""
    packed: list[str] = []
    for message in messages:
        line = f"{message.role.capitalize()}: {message.content.strip()}"
        if packed and count(joined := f"{packed[-1]}\n{line}") <= tokens:
            packed[-1] = joined
        else:
            packed += split_by_count(line, tokens, count)
    return packed


def _call(kind: Literal["read", "reply", "write", "answer"], reply: Reply) -> Call:
    return Call(kind, reply.prompt_tokens, reply.completion_tokens)
