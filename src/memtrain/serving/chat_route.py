"""``POST /v1/chat/completions`` and ``GET /v1/models``: OpenAI's API, with a memory behind it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import JSONResponse

from memtrain.memory.chat import OnEvent, Reading, Remembered, Spoken
from memtrain.serving import contract
from memtrain.serving.contract import SESSION_ID, SESSION_RULE, ChatRequest
from memtrain.serving.errors import ApiError
from memtrain.serving.server import EVENTS, JSON_ONLY, REFUSALS, Owner, Server, call_bodies, calls_of
from memtrain.serving.sessions import Done, Options, tokens_of

SESSION_HEADER = "X-Session-Id"


def chat_routes(server: Server) -> APIRouter:
    """The routes that OpenAI's clients know."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    @router.post(
        "/chat/completions",
        response_model=contract.ChatCompletion,
        responses={200: {"description": "The reply, or with stream a chat.completion.chunk an event.", **EVENTS}},
        dependencies=[JSON_ONLY],
        tags=["chat"],
    )
    async def create_chat_completion(
        request: Request,
        asked: ChatRequest,
        owner: Owner,
        x_session_id: Annotated[str | None, Header(max_length=128, pattern=SESSION_ID)] = None,
    ) -> Response:
        """One turn of a conversation with bounded memory."""
        session_id = _session_id(asked, x_session_id)
        name, agent = server.agent(asked.model)
        try:
            messages = asked.conversation()
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None
        options = Options(
            max_tokens=asked.max_completion_tokens or asked.max_tokens,
            temperature=asked.temperature,
            top_p=None if asked.top_p is None else max(asked.top_p, 1e-6),
            stop=asked.stops(),
        )
        start = time.monotonic()
        first = [server.metrics.first_text.observe]
        settled: list[str] = []

        async def work(on_event: OnEvent) -> Done:
            def told(event: Any) -> None:
                if isinstance(event, Spoken) and first:
                    first.pop()(time.monotonic() - start)
                on_event(event)

            return await server.sessions.chat(owner, session_id, messages, agent, name, options, told, settled.append)

        running = server.run("chat", work, calls_of)
        answer = _Answer(name)
        if not asked.stream:
            done = await running.result(request)
            return JSONResponse(answer.whole(done).model_dump(), headers={SESSION_HEADER: done.session.id})
        await running.begun(request)
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        settled += [session_id] if session_id is not None else []
        headers = {SESSION_HEADER: settled[0]} if settled else {}
        return running.stream(answer.shown, lambda done: answer.last(done, usage), headers)

    @router.get("/models", tags=["models"])
    async def list_models(owner: Owner) -> contract.ModelList:
        """The models that are served; the first is the default."""
        return contract.ModelList(data=[_card(server, name) for name in server.agents])

    @router.get("/models/{model:path}", tags=["models"])
    async def retrieve_model(owner: Owner, model: Annotated[str, Path()]) -> contract.ModelCard:
        """One of them."""
        return _card(server, server.agent(model)[0])

    return router


class _Answer:
    """A turn as OpenAI's objects, streamed or whole."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._model, self._created = model, int(time.time())
        self._spoken = False

    def whole(self, done: Done) -> contract.ChatCompletion:
        """The unstreamed answer."""
        return contract.ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                contract.Choice(message=contract.AssistantMessage(content=done.reply), finish_reason=done.stop_reason)
            ],
            usage=_usage(done),
            memtrain=contract.TurnBody(
                session_id=done.session.id,
                turn=done.session.turn,
                memory=done.session.memory,
                calls=call_bodies(done.calls),
            ),
        )

    def shown(self, event: Any) -> Iterator[dict[str, Any]]:
        """What one event of a turn is in the stream."""
        if isinstance(event, Spoken):
            yield self._chunk({**self._role(), "content": event.text})
        elif isinstance(event, Reading):
            body = {"event": "reading", "chunk": event.chunk, "chunks": event.chunks, "memory": event.memory}
            yield self._chunk(self._role(), memtrain=body)
        elif isinstance(event, Remembered):
            return  # told when it is kept

    def last(self, done: Done, usage: bool) -> Iterator[dict[str, Any]]:
        """How the stream ends once the turn is in the store."""
        session = done.session
        body = {
            "event": "memory",
            "memory": session.memory,
            "turn": session.turn,
            "session_id": session.id,
            "calls": [call.model_dump() for call in call_bodies(done.calls)],
        }
        yield self._chunk(self._role(), memtrain=body)
        yield self._chunk({}, finish_reason=done.stop_reason)
        if usage:
            yield {**self._chunk({}), "choices": [], "usage": _usage(done).model_dump()}

    def _role(self) -> dict[str, Any]:
        if self._spoken:
            return {}
        self._spoken = True
        return {"role": "assistant", "content": ""}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            **more,
        }


def _usage(done: Done) -> contract.Usage:
    prompt, completion = tokens_of(done.calls)
    written = sum(call.completion_tokens for call in done.calls if call.kind != "reply")
    return contract.Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        completion_tokens_details=contract.CompletionDetails(reasoning_tokens=written),
    )


def _session_id(asked: ChatRequest, header: str | None) -> str | None:
    """The one session that header, body and metadata name; None where none does."""
    given = [header, asked.session_id, (asked.metadata or {}).get("session_id")]
    named = [value for value in given if value is not None]
    if not named:
        return None
    if any(value != named[0] for value in named):
        raise ApiError(400, f"{SESSION_HEADER}, session_id and metadata.session_id name different sessions")
    if not isinstance(named[0], str) or not re.fullmatch(SESSION_ID, named[0]):
        raise ApiError(400, SESSION_RULE, param="session_id")
    return named[0]


def _card(server: Server, name: str) -> contract.ModelCard:
    return contract.ModelCard(id=name, created=int(server.begun))
