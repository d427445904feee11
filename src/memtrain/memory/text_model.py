"""A model as an agent behind an API sees it: a conversation in, a text out.

Training needs token ids and log-probs (``engines/base.py``); serving needs text alone, and so runs in front of any
engine and of any OpenAI-compatible server alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from memtrain.engines.base import Engine, StreamingEngine
from memtrain.memory.chat_format import ChatFormat
from memtrain.types import SamplingParams, StopReason

Role = Literal["system", "user", "assistant"]
OnText = Callable[[str], None]
"""Called with each new piece of a text, in order."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Reply:
    """What a model says to a conversation, and what it took."""

    text: str
    """Without special tokens, thinking block and stop text, stripped."""
    prompt_tokens: int
    completion_tokens: int
    stop_reason: StopReason


class TextModel(Protocol):
    """A model that goes on with a conversation."""

    @property
    def context_tokens(self) -> int:
        """Longest prompt plus completion, in tokens."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a plain text; where the tokenizer is not known, rather too many than too few."""
        ...

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, on_text: OnText | None = None
    ) -> Reply:
        """The next message. ``on_text`` gets its pieces while it is written; joined they are the reply's text.

        Cancelling the task stops the work. Raises :class:`memtrain.errors.UserError` for what the user can mend.
        """
        ...


class EngineModel:
    """An engine as a text model: it renders the model's chat template and decodes what comes."""

    def __init__(self, engine: Engine) -> None:
        """Raises :class:`memtrain.errors.UserError` where the model's chat template cannot be used."""
        self.engine = engine
        self.format = ChatFormat(engine.tokenizer)

    @property
    def context_tokens(self) -> int:
        """The engine's window."""
        return self.engine.context_tokens

    def count(self, text: str) -> int:
        """Tokens of a text made harmless, as it stands in a prompt."""
        return len(self.format.encode(self.format.neutral(text)))

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, on_text: OnText | None = None
    ) -> Reply:
        """See :meth:`TextModel.complete`. Streams where the engine does, else the text comes in one piece."""
        prompt_ids = self.format.conversation([(message.role, message.content) for message in messages])
        params = replace(params, stop=(*params.stop, *self.format.stop))
        telling, ids = Telling(params.stop, on_text), list[int]()

        def drawn(token: int) -> None:
            ids.append(token)
            telling.grow(self.format.text_of(ids))

        if on_text is not None and isinstance(self.engine, StreamingEngine):
            completion = await self.engine.stream(prompt_ids, params, drawn)
        else:
            [completion] = await self.engine.sample(prompt_ids, params)
        text = telling.finish(self.format.text_of(completion.token_ids))
        return Reply(text, len(prompt_ids), len(completion.token_ids), completion.stop_reason)


class Telling:
    """A text that grows, told in pieces of which none has to be taken back; the first stop text ends it."""

    def __init__(self, stop: Sequence[str], on_text: OnText | None) -> None:
        self._stop, self._on_text = stop, on_text
        self._told = ""
        self._held = max((len(text) for text in stop), default=1) - 1
        """Characters at the end that may be the beginning of a stop text."""

    def grow(self, text: str) -> None:
        """The text as far as it is known."""
        text = self._cut(text)
        self._tell(text[: len(text) - self._held].rstrip())

    def finish(self, text: str) -> str:
        """The whole text, which is returned as it counts; what has not been told of it yet is told."""
        text = self._cut(text)
        self._tell(text)
        return text

    def _cut(self, text: str) -> str:
        for stop in self._stop:
            text = text.partition(stop)[0]
        return text.strip()

    def _tell(self, text: str) -> None:
        # A text that has changed before its end (a thinking block that has only now been opened) is not told twice.
        if self._on_text is not None and len(text) > len(self._told) and text.startswith(self._told):
            self._on_text(text[len(self._told) :])
            self._told = text
