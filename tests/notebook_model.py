"""A deterministic text model that keeps notes as a trained one should: for testing what is around it.

It knows every ``FACT key=value`` of what it is shown, a later value in place of an earlier one. Asked to write the
memory anew it writes them all; asked ``key?`` it says the value; else it says all it knows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from memtrain.memory.chat import ChatAgent
from memtrain.memory.text_model import Message, OnText, Reply
from memtrain.memory.texts import COMPACT
from memtrain.settings import ChatSettings, MemorySettings
from memtrain.types import SamplingParams

FACT = re.compile(r"FACT ([\w-]+)=([\w.-]+)")
ASKED = re.compile(r"([\w-]+)\?")
MEMORY = MemorySettings(chunk_tokens=100, memory_tokens=400, answer_tokens=20, style="compact")
CHAT = ChatSettings(context_tokens=800, reply_tokens=64)


class NotebookModel:
    """Tokens are words. ``delay``: seconds before every piece of a reply and every memory write."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.asked = 0
        """Calls that began."""
        self.cancelled = 0
        """Calls whose task was cancelled."""
        self.most_at_once = 0
        self._at_once = 0

    @property
    def context_tokens(self) -> int:
        return 100_000

    def count(self, text: str) -> int:
        return len(text.split())

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, on_text: OnText | None = None
    ) -> Reply:
        self.asked += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._complete(messages, params, on_text)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._at_once -= 1

    async def _complete(self, messages: Sequence[Message], params: SamplingParams, on_text: OnText | None) -> Reply:
        text = self._said(messages)
        for stop in params.stop:
            text = text.partition(stop)[0]
        words = re.findall(r"\S+\s*", text)
        cut, told = words[: params.max_tokens], ""
        whole = "".join(cut).rstrip()
        for word in cut:
            await asyncio.sleep(self.delay if on_text else 0)
            if on_text is not None:
                piece = word if len(told) + len(word) <= len(whole) else whole[len(told) :]
                told += piece
                on_text(piece)
        if on_text is None:
            await asyncio.sleep(self.delay)
        prompt = sum(self.count(message.content) for message in messages)
        return Reply(whole, prompt, len(cut), "stop" if len(cut) == len(words) else "length")

    def _said(self, messages: Sequence[Message]) -> str:
        last = messages[-1].content
        if messages[-1].role == "user" and COMPACT.write_cue in last:
            section, _, notes = last.rpartition(f"{COMPACT.memory}\n")
            return "\n".join(f"FACT {key}={value}" for key, value in _facts(notes, section).items()) or "Nothing."
        shown = "\n".join(message.content for message in messages)
        facts, asked = _facts(shown), ASKED.findall(last)
        if COMPACT.answer_cue in last:
            return f"\\boxed{{{facts.get(asked[-1], 'unknown') if asked else 'unknown'}}}"
        if asked:
            return " and ".join(facts.get(key, "unknown") for key in asked)
        return "I know " + ", ".join(f"{key} is {value}" for key, value in facts.items()) + "."


def _facts(*texts: str) -> dict[str, str]:
    return dict(pair for text in texts for pair in FACT.findall(text))


def notebook_agent(delay: float = 0.0, **chat: object) -> tuple[ChatAgent, NotebookModel]:
    """A chat agent over a new model."""
    model = NotebookModel(delay)
    return ChatAgent(model, MEMORY, CHAT.model_copy(update=chat)), model
