"""Any OpenAI-compatible server as a text model: vLLM, Ollama, llama.cpp, a hosted one (extra ``serve``).

Everything is asked for as a stream, so that a turn which is stopped closes the connection, and the server there stops
too.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from memtrain.errors import UserError, first_line
from memtrain.memory.chat_format import in_turns
from memtrain.memory.text_model import Message, OnText, Reply, Telling
from memtrain.serving.errors import UpstreamError
from memtrain.types import SamplingParams, StopReason

if TYPE_CHECKING:
    import openai

ANY_WINDOW = 10_000_000
"""The window of a server that does not tell it: too long a prompt is then its own to refuse."""
CONNECT_SECONDS = 10.0
MOST_STOPS = 4
"""Stop texts that OpenAI's API takes; further ones are cut here."""
_LONG = ("context length", "context size", "context window", "context_length", "too long", "maximum context")
_THINK, _END_THINK = "<think>", "</think>"


class TokenEstimate:
    """Tokens of a text for a tokenizer that is not known: from its bytes, by what the server has counted so far."""

    FIRST = 0.5
    """Tokens a byte before anything was counted: English takes 0.25, most other languages less than 0.4."""
    MARGIN = 1.1
    LEAST_BYTES = 1000
    """Shorter prompts say little: the template's own tokens weigh too much in them."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=64)

    def learn(self, texts: Sequence[str], tokens: int) -> None:
        """A prompt of these texts took so many tokens."""
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        if size >= self.LEAST_BYTES and tokens > 0:
            self._seen.append(tokens / size)

    def __call__(self, text: str) -> int:
        """Rather too many than too few."""
        ratio = min(1.0, max(self._seen) * self.MARGIN) if self._seen else self.FIRST
        return math.ceil(len(text.encode("utf-8", "replace")) * ratio)


class UpstreamModel:
    """A model of an OpenAI-compatible server."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        model: str,
        *,
        context_tokens: int = ANY_WINDOW,
        count: Callable[[str], int] | None = None,
    ) -> None:
        """``count``: tokens of a text by the model's own tokenizer; without it they are estimated."""
        self.client, self.model = client, model
        self._context_tokens = context_tokens
        self._estimate = TokenEstimate()
        self._count = count or self._estimate
        self._left_out: set[str] = set()

    @property
    def context_tokens(self) -> int:
        """The server's window, where it told one."""
        return self._context_tokens

    def count(self, text: str) -> int:
        """Tokens of a text; an upper estimate without a tokenizer."""
        return self._count(text)

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, on_text: OnText | None = None
    ) -> Reply:
        """See :meth:`memtrain.memory.text_model.TextModel.complete`. Raises :class:`UpstreamError`."""
        import openai

        telling, raw, usage, answered = Telling(params.stop, on_text), "", None, False
        reason: StopReason = "stop"
        try:
            async with await self._ask(messages, params) as stream:
                async for chunk in stream:
                    usage = chunk.usage or usage
                    for choice in chunk.choices[:1]:
                        answered = True
                        if choice.delta is not None and choice.delta.content:
                            raw += choice.delta.content
                            if on_text is not None:
                                telling.grow(_spoken(raw, done=False))
                        if choice.finish_reason is not None:
                            reason = "length" if choice.finish_reason == "length" else "stop"
        except openai.OpenAIError as error:
            raise _explained(error, self.client.base_url) from None
        except ValueError:  # what came is not JSON
            raise _something_else(self.client.base_url) from None
        if not answered:
            raise _something_else(self.client.base_url)
        text, raw = telling.finish(_spoken(raw, done=True)), _joined(raw, done=True)
        shown = [message.content for message in messages]
        if usage is None:
            return Reply(text, sum(map(self.count, shown)), self.count(raw), reason)
        self._estimate.learn(shown, usage.prompt_tokens)
        return Reply(text, usage.prompt_tokens, usage.completion_tokens, reason)

    async def _ask(self, messages: Sequence[Message], params: SamplingParams) -> Any:
        """The stream. What a server says that it does not take is left out from then on (OpenAI's newer models)."""
        import openai

        turns: Any = [
            {"role": role, "content": text} for role, text in in_turns([(one.role, one.content) for one in messages])
        ]
        while True:
            arguments: dict[str, Any] = {
                "max_tokens": params.max_tokens,
                "max_completion_tokens": params.max_tokens,
                "temperature": params.temperature,
                "top_p": params.top_p,
                "stop": list(params.stop[:MOST_STOPS]) or None,
                "stream_options": {"include_usage": True},
            }
            left_out = self._left_out | ({"max_completion_tokens"} if "max_tokens" not in self._left_out else set())
            given = {key: value for key, value in arguments.items() if value is not None and key not in left_out}
            try:
                return await self.client.chat.completions.create(model=self.model, messages=turns, stream=True, **given)
            except openai.BadRequestError as error:
                known = (error.code or "").startswith("unsupported_") and error.param in given
                if not known:
                    raise
                self._left_out.add(str(error.param))


def _spoken(raw: str, done: bool) -> str:
    """What was said so far: without a thinking block at its head, or what may become one."""
    text = _joined(raw, done).lstrip()
    if text.startswith(_THINK):
        return text.partition(_END_THINK)[2]
    return "" if not done and _THINK.startswith(text) else text


def _joined(raw: str, done: bool) -> str:
    """Halves of characters, as JSON may spell them in two pieces, put together; one without the other is replaced."""
    try:
        raw.encode()
        return raw
    except UnicodeEncodeError:
        if not done and "\ud800" <= raw[-1] <= "\udbff":
            raw = raw[:-1]  # its other half is still to come
        return raw.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def open_client(url: str, key_env: str = "") -> openai.AsyncOpenAI:
    """The client of a server. ``key_env``: environment variable that holds the key; empty: the server wants none.

    Raises :class:`UserError` for what is no address, an unset variable, a missing extra.
    """
    try:
        import openai
    except ImportError as error:
        raise UserError(f"an upstream server needs openai ({error}): pip install 'memtrain[serve]'") from None
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"--upstream {url} is no address; use one like http://127.0.0.1:8000/v1")
    key = os.environ.get(key_env, "").strip() if key_env else "none"
    if not key:
        raise UserError(f"--upstream-key-env {key_env}: that environment variable is not set; put the key into it")
    path = parts.path.rstrip("/") or "/v1"
    return openai.AsyncOpenAI(
        base_url=urlunsplit(parts._replace(path=path)),
        api_key=key,
        timeout=openai.Timeout(None, connect=CONNECT_SECONDS),  # how long a turn may take is the server's own limit
        max_retries=2,
    )


async def served(client: openai.AsyncOpenAI) -> dict[str, int]:
    """The models of a server and their windows (0 where it tells none). Raises :class:`UpstreamError`."""
    import openai

    try:
        models = await client.models.list()
    except openai.OpenAIError as error:
        raise _explained(error, client.base_url) from None
    except (ValueError, AttributeError):  # not JSON; JSON of another shape
        raise _something_else(client.base_url) from None
    found = {}
    for model in models.data:
        more = model.model_extra or {}
        meta = more.get("meta")
        window = more.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
        found[model.id] = window if isinstance(window, int) and window > 0 else 0
    return found


def _explained(error: Exception, url: Any) -> UpstreamError:
    """One sentence, with the status that our own client gets."""
    import openai

    place = f"the upstream server {_address(url)}"
    if isinstance(error, openai.APITimeoutError):
        return UpstreamError(f"{place} did not answer in time", 504)
    if isinstance(error, openai.APIConnectionError):
        return UpstreamError(f"{place} cannot be reached; is it running?")
    said = first_line(error)[:200]
    if not isinstance(error, openai.APIStatusError):
        if any(words in said.lower() for words in _LONG):
            return _too_long(place)
        return UpstreamError(f"{place} broke off: {said}")
    status = error.status_code
    if status in (401, 403):
        return UpstreamError(f"{place} does not accept the key; see --upstream-key-env")
    if status == 404:
        return UpstreamError(f"{place} does not know the model or the address; see --upstream and --upstream-model")
    if status == 429:
        return UpstreamError(f"{place} takes no more requests just now; try again later", 429)
    if status < 500 and any(words in said.lower() for words in _LONG):
        return _too_long(place)
    if status < 500:
        return UpstreamError(f"{place} refuses the request: {said}")
    return UpstreamError(f"{place} fails with status {status}", 503 if status == 503 else 502)


def _something_else(url: Any) -> UpstreamError:
    return UpstreamError(f"{_address(url)} does not answer as an OpenAI API does; see --upstream")


def _too_long(place: str) -> UpstreamError:
    return UpstreamError(
        f"a turn does not fit the window of {place}; lower chat.context_tokens or memory.chunk_tokens, or name its "
        "--tokenizer"
    )


def _address(url: Any) -> str:
    """Without a user's name and password."""
    parts = urlsplit(str(url))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
