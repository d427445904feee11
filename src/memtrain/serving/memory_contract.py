"""The requests and answers of ``/v1/memory``: what an owner sees and changes of sessions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, StrictBool

from memtrain.serving.contract import CallBody, CleanText, Name, Request, Text, no_flag


class MemoryEdit(Request):
    """What an owner changes by hand; what is left out stays."""

    memory: CleanText | None = None
    """The new memory."""
    expires_in: Annotated[float, Field(gt=0, le=3.2e9, allow_inf_nan=False), BeforeValidator(no_flag)] | None = None
    """Seconds from now; null: never."""
    turn: Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(no_flag)] | None = None
    """The turn that the edit is meant for: refused with 409 where the session has moved on."""


class ReadRequest(Request):
    """A document to read into a session's memory."""

    text: Text
    question: CleanText | None = None
    """What the reader should look for."""
    model: Name | None = None
    stream: StrictBool | None = None


class AskRequest(Request):
    """A question to answer from the memory alone."""

    question: Text
    model: Name | None = None


class MessageBody(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class SessionRow(BaseModel):
    """A session in the list."""

    session_id: str
    turn: int
    created: float
    updated: float
    expires: float | None
    memory_chars: int


class SessionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[SessionRow]
    has_more: bool


class SessionBody(BaseModel):
    """All that is kept of a session between turns; times in seconds since 1970, UTC."""

    session_id: str
    memory: str
    turn: int
    created: float
    updated: float
    expires: float | None
    model: str
    recent: list[MessageBody]


class TurnRow(BaseModel):
    turn: int
    memory: str
    prompt_tokens: int
    completion_tokens: int
    created: float


class SessionExport(BaseModel):
    session: SessionBody
    turns: list[TurnRow]


class Deleted(BaseModel):
    deleted: bool


class DeletedCount(BaseModel):
    deleted: int


class ReadAnswer(BaseModel):
    session_id: str
    turn: int
    memory: str
    chunks: int
    calls: list[CallBody]


class AskAnswer(BaseModel):
    answer: str
    session_id: str
    turn: int
