"""The requests and answers of the OpenAI API that this server speaks, and what it adds under ``memtrain``.

What a client may send and this server has no use for is let through unread, as OpenAI's own clients send many fields;
what would change the answer and cannot be had (tools, several choices, images) is refused by name. Every text is
cleaned where it comes in: JSON may spell halves of characters and zero bytes, which no database takes.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

from memtrain.memory.text_model import Message

SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$"
SESSION_RULE = "a session id has 1 to 128 of the characters A-Z a-z 0-9 . _ : @ - and begins with a letter or a digit"
MOST_MESSAGES = 10_000
MOST_PARTS = 1000
"""Parts of one message. Lists stop at their first wrong item: a million wrong ones would take a gigabyte to tell of."""
MOST_TOKENS = 1_000_000
MOST_NAME = 256
"""Longest name of a model or file."""

REFUSED = {
    "n": "n must be 1: a conversation with a memory goes on in one way only",
    "tools": "tools are not supported: leave them out",
    "functions": "functions are not supported: leave them out",
    "tool_choice": 'tools are not supported: leave tool_choice out, or "none"',
    "function_call": 'functions are not supported: leave function_call out, or "none"',
    "logprobs": "log-probabilities are not supported: leave logprobs out",
    "top_logprobs": "log-probabilities are not supported: leave top_logprobs out",
    "logit_bias": "logit_bias is not supported: leave it out",
    "response_format": 'only plain text is written: leave response_format out, or {"type": "text"}',
    "modalities": 'only text is written: leave modalities out, or ["text"]',
    "audio": "audio is not supported: leave it out",
}
"""Fields that are known and not taken, with the sentence that says so."""


def clean(text: str) -> str:
    """Without halves of characters and zero bytes, which neither UTF-8 nor a database takes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "�")


def _cleaned(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value


def no_flag(value: Any) -> Any:
    """JSON's true and "5" are no numbers, though pydantic would take them for such."""
    if isinstance(value, bool | str):
        raise ValueError("must be a number")
    return value


def _no_truth(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


CleanText = Annotated[str, BeforeValidator(_cleaned)]
NOT_BLANK = r"\S"
# Limits stand before the validator: so the description of the API tells them.
Text = Annotated[str, Field(pattern=NOT_BLANK), BeforeValidator(_cleaned)]
Name = Annotated[str, Field(max_length=MOST_NAME), BeforeValidator(_cleaned)]
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS), BeforeValidator(no_flag)]
SessionId = Annotated[str, Field(pattern=SESSION_ID, max_length=128)]


class Request(BaseModel):
    """What every body has in common: unknown fields are let through unread."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, ser_json_inf_nan="constants")


# ---- POST /v1/chat/completions: what comes in ------------------------------------------------------------------------


class TextPart(Request):
    type: Literal["text"]
    text: CleanText


class FileData(Request):
    filename: Name = "file"
    file_data: CleanText
    """``data:text/plain;base64,...`` or the base64 alone; UTF-8 text."""


class FilePart(Request):
    type: Literal["file"]
    file: FileData


Part = Annotated[TextPart | FilePart, Field(discriminator="type")]


class ChatMessage(Request):
    """One message; ``developer`` counts as ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: CleanText | Annotated[list[Part], Field(max_length=MOST_PARTS, fail_fast=True)]

    def text(self) -> str:
        """The content as one text; a file stands under its name. Raises ``ValueError`` for a file that is no text."""
        if isinstance(self.content, str):
            return self.content
        return "\n\n".join(part.text if isinstance(part, TextPart) else _file_text(part.file) for part in self.content)


class StreamOptions(Request):
    include_usage: StrictBool | None = None


class TextFormat(Request):
    type: Literal["text"]


Stop = Annotated[list[Name], Field(max_length=16)]


class ChatRequest(Request):
    """A chat completion, as OpenAI's clients ask for it."""

    model: Name | None = None
    """A name of ``GET /v1/models``; left out: the first of them."""
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    """The new messages, or the whole history; the last one is the user's."""
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    """The same by its newer name, which goes first."""
    temperature: Annotated[float, Field(ge=0, le=2), BeforeValidator(no_flag)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1), BeforeValidator(no_flag)] | None = None
    stop: Name | Stop | None = None
    session_id: SessionId | None = None
    """The conversation that goes on; also as header ``X-Session-Id`` or ``metadata.session_id``."""
    metadata: dict[str, Any] | None = None

    n: Annotated[Literal[1], BeforeValidator(no_flag)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    logprobs: Annotated[Literal[False], BeforeValidator(_no_truth)] | None = None
    top_logprobs: Annotated[Literal[0], BeforeValidator(no_flag)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    audio: None = None

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self

    def conversation(self) -> list[Message]:
        """The messages as plain text. Raises ``ValueError`` with a sentence for a file that is no text."""
        texts = [(message.role, message.text()) for message in self.messages]
        if not texts[-1][1].strip():
            raise ValueError("the last message is empty")
        return [Message("system" if role == "developer" else role, text) for role, text in texts]

    def stops(self) -> tuple[str, ...]:
        """Texts that end the reply."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in texts if text)


# ---- POST /v1/chat/completions: what goes out ------------------------------------------------------------------------


class CallBody(BaseModel):
    """One call of the model that a turn took."""

    kind: Literal["read", "reply", "write", "answer"]
    prompt_tokens: int
    completion_tokens: int


class TurnBody(BaseModel):
    """What this server adds to OpenAI's answer."""

    session_id: str
    turn: int
    memory: str
    calls: list[CallBody]


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class CompletionDetails(BaseModel):
    reasoning_tokens: int
    """What writing the memory took."""


class Usage(BaseModel):
    """Sums over all calls of the turn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails


class ChatCompletion(BaseModel):
    """The unstreamed answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    memtrain: TurnBody


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "memtrain"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"]
    version: str
    models: list[str]


def _file_text(file: FileData) -> str:
    name = " ".join(file.filename.split()) or "file"
    data = file.file_data
    if data.startswith("data:"):
        head, comma, data = data.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError(f"file {name}: file_data must be data:text/plain;base64,... with the text in base64")
    try:
        text = base64.b64decode("".join(data.split()), validate=True).decode("utf-8-sig")
    except (binascii.Error, ValueError):
        raise ValueError(f"file {name}: only UTF-8 text in base64 is read; convert the file to plain text") from None
    return f"File {name}:\n{clean(text)}"
