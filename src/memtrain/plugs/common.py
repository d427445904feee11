"""What the plugs share: token estimates, sizes that fit a budget, replies cut to size, coroutines run without await."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from memtrain.errors import UserError, first_line
from memtrain.memory.chat import ASK_TOKENS, MESSAGE_TOKENS, ChatAgent, without_thoughts
from memtrain.memory.cutting import Count
from memtrain.memory.text_model import TextModel
from memtrain.memory.texts import UserTexts
from memtrain.settings import ChatSettings, MemorySettings
from memtrain.types import StopReason

T = TypeVar("T")

BYTES_A_TOKEN = 3
"""UTF-8 bytes that count as a token where the tokenizer is not known; English has 4 to 5 a token, digits and code 3."""
MOST_BYTES_A_TOKEN = 6
"""More than any text has on average: bounds the reply of a model that does not heed a limit."""
LIMIT_FIELDS = ("max_tokens", "max_output_tokens", "num_predict", "max_new_tokens")
"""Where the model classes of the frameworks keep the longest reply."""
CUT_SHORT = ("length", "max_tokens", "MAX_TOKENS", "max_output_tokens")
"""What servers call a reply that was cut at its limit."""
SMALLEST_CHUNK, SMALLEST_MEMORY = 128, 64


def missing(extra: str, error: ImportError) -> UserError:
    """What to say where an extra is not installed."""
    return UserError(f"memtrain.plugs needs {error.name or first_line(error)}: pip install 'memtrain[{extra}]'")


def estimate_tokens(text: str) -> int:
    """Tokens of a text by its length, rather too many than too few, for models whose tokenizer is out of reach."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def memory_within(context_tokens: int, count: Count) -> MemorySettings:
    """An eighth of a budget for the memory (at most 1,024 tokens), and chunks such that a write fits the budget.

    Raises :class:`UserError` where a budget is too small for a memory.
    """
    memory = max(SMALLEST_MEMORY, min(1024, context_tokens // 8))
    texts = UserTexts(MemorySettings(memory_tokens=memory))
    fixed = count(texts.chat_write("", "")) + count(texts.write("", "", "")) + ASK_TOKENS + 2 * MESSAGE_TOKENS
    chunk = context_tokens - fixed - 2 * memory
    if chunk < SMALLEST_CHUNK:
        least = (fixed + SMALLEST_CHUNK) * 4 // 3 + 8
        raise UserError(
            f"context_tokens={context_tokens} leaves no room for a memory; give at least {least}, or memory= settings "
            "of the compact style"
        )
    return MemorySettings(chunk_tokens=min(5000, chunk), memory_tokens=memory)


def sized(model: Any, max_tokens: int, temperature: float | None) -> Any:
    """A copy of a framework's model (a pydantic object) with this limit, and this temperature where one is given.

    Set in the fields where its class keeps them, as the names differ from provider to provider; what it has no field
    for stays as it is.
    """
    known = getattr(type(model), "model_fields", {})
    update: dict[str, Any] = {name: max_tokens for name in LIMIT_FIELDS if name in known}
    if temperature is not None and "temperature" in known:
        update["temperature"] = temperature
    return model.model_copy(update=update) if update else model


def finished(text: str, reason: Any, max_tokens: int) -> tuple[str, StopReason]:
    """A reply without its thoughts and no longer than its limit can be, and why it ended."""
    text = without_thoughts(text)
    most = max_tokens * MOST_BYTES_A_TOKEN
    if len(raw := text.encode("utf-8", "replace")) > most:
        return raw[:most].decode("utf-8", "ignore").rstrip(), "length"
    return text, "length" if reason in CUT_SHORT else "stop"


def shown(texts: UserTexts, memory: str) -> str:
    """The part of a system message that shows a memory and says what it is."""
    return texts.joined(texts.texts.chat_system, texts.notes(memory, texts.texts.chat_memory))


def memory_agent(model: TextModel, memory: MemorySettings) -> ChatAgent:
    """The agent that writes memories with this model; it is never asked for replies."""
    return ChatAgent(model, memory, ChatSettings(context_tokens=max(64, model.context_tokens - 1), reply_tokens=1))


def run_here(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from code that cannot await, whether or not this thread has an event loop.

    In a thread of its own, with the caller's context variables: frameworks keep their tracing there.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work()))
        except BaseException as error:  # whatever it is, it belongs to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="memtrain-plug", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
