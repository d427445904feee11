"""``/v1/memory``: an owner lists, reads, edits, exports and deletes sessions, reads documents into them, asks them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from memtrain.memory.chat import Call, OnEvent, Reading
from memtrain.serving import memory_contract as bodies
from memtrain.serving.contract import clean
from memtrain.serving.errors import ApiError
from memtrain.serving.server import EVENTS, JSON_ONLY, REFUSALS, Owner, Server, SessionPath, call_bodies, calls_of
from memtrain.serving.sessions import Done, not_found
from memtrain.serving.store import Session


def memory_routes(server: Server) -> APIRouter:
    """The routes of the owner's own sessions."""
    router = APIRouter(prefix="/v1/memory", responses=REFUSALS, tags=["memory"])
    sessions, store = server.sessions, server.sessions.store

    @router.get("")
    async def list_sessions(
        owner: Owner,
        limit: Annotated[int, Query(ge=1, le=1000, description="Most sessions.")] = 100,
        after: Annotated[str, Query(max_length=128, description="Those whose ids come after this one.")] = "",
    ) -> bodies.SessionList:
        """The owner's sessions in the order of their ids."""
        found = await asyncio.to_thread(store.sessions, owner, limit + 1, clean(after))
        return bodies.SessionList(data=[_row(s) for s in found[:limit]], has_more=len(found) > limit)

    @router.delete("")
    async def delete_sessions(owner: Owner) -> bodies.DeletedCount:
        """Delete all of them."""
        return bodies.DeletedCount(deleted=await asyncio.to_thread(store.delete_all, owner))

    @router.get("/{session}")
    async def get_session(owner: Owner, session: SessionPath) -> bodies.SessionBody:
        """A session's memory and last messages."""
        return _body(await sessions.get(owner, session))

    @router.put("/{session}", dependencies=[JSON_ONLY])
    async def edit_session(owner: Owner, session: SessionPath, asked: bodies.MemoryEdit) -> bodies.SessionBody:
        """Write a memory by hand, set when it expires; makes a session that is not there."""
        if asked.memory is not None:
            await asyncio.to_thread(_check_memory, server, asked.memory)
        expires: float | EllipsisType | None = ...
        if "expires_in" in asked.model_fields_set:
            expires = None if asked.expires_in is None else time.time() + asked.expires_in
        return _body(await sessions.edit(owner, session, asked.memory, expires, asked.turn))

    @router.delete("/{session}")
    async def delete_session(owner: Owner, session: SessionPath) -> bodies.Deleted:
        """Delete a session with all its turns."""
        if not await asyncio.to_thread(store.delete, owner, session):
            raise not_found(session)
        return bodies.Deleted(deleted=True)

    @router.get("/{session}/export")
    async def export_session(owner: Owner, session: SessionPath) -> bodies.SessionExport:
        """All that is kept of a session."""
        found = await sessions.get(owner, session)
        turns = await asyncio.to_thread(store.turns, owner, session)
        return bodies.SessionExport(
            session=_body(found),
            turns=[
                bodies.TurnRow(
                    turn=turn.turn,
                    memory=turn.memory,
                    prompt_tokens=turn.prompt_tokens,
                    completion_tokens=turn.completion_tokens,
                    created=turn.created,
                )
                for turn in turns
            ],
        )

    @router.post(
        "/{session}/read",
        response_model=bodies.ReadAnswer,
        responses={
            200: {"description": "The memory after the last chunk, or with stream one event a chunk.", **EVENTS}
        },
        dependencies=[JSON_ONLY],
    )
    async def read_document(
        request: Request, owner: Owner, session: SessionPath, asked: bodies.ReadRequest
    ) -> Response:
        """Read a document of any length into the memory."""
        name, agent = server.agent(asked.model)
        chunks = 0

        async def work(on_event: OnEvent) -> Done:
            def told(event: Any) -> None:
                nonlocal chunks
                chunks += isinstance(event, Reading)
                on_event(event)

            return await sessions.read(owner, session, asked.text, asked.question or "", agent, name, told)

        def last(done: Done) -> Iterator[dict[str, Any]]:
            yield {"event": "memory", **_read_answer(done, chunks).model_dump()}

        running = server.run("read", work, calls_of)
        if not asked.stream:
            done = await running.result(request)
            return JSONResponse(_read_answer(done, chunks).model_dump())
        await running.begun(request)
        return running.stream(_reading, last, {})

    @router.post("/{session}/ask", dependencies=[JSON_ONLY])
    async def ask_memory(
        request: Request, owner: Owner, session: SessionPath, asked: bodies.AskRequest
    ) -> bodies.AskAnswer:
        """Answer a question from the memory alone; changes nothing."""
        _, agent = server.agent(asked.model)
        found = await sessions.get(owner, session)

        async def work(on_event: OnEvent) -> tuple[str, Call]:
            return await agent.ask(found.memory, asked.question)

        def calls(result: tuple[str, Call]) -> Sequence[Call]:
            return [result[1]]

        answer, _ = await server.run("ask", work, calls).result(request)
        return bodies.AskAnswer(answer=answer, session_id=found.id, turn=found.turn)

    return router


def _check_memory(server: Server, memory: str) -> None:
    """Refuse a memory that no turn could be made with. A little more than the model may write: an edit may add."""
    most = server.settings.memory_chars
    if len(memory) > most:
        raise ApiError(413, f"a memory may have {most:,} characters", param="memory", code="too_long")
    agent = server.agent(None)[1]
    room, tokens = agent.memory.memory_tokens * 5 // 4 + 16, agent.model.count(memory)
    if tokens > room:
        raise ApiError(
            413,
            f"this memory has {tokens:,} tokens, and one may have {room:,} (memory.memory_tokens is "
            f"{agent.memory.memory_tokens:,})",
            param="memory",
            code="too_long",
        )


def _reading(event: Any) -> Iterator[dict[str, Any]]:
    if isinstance(event, Reading):
        yield {"event": "reading", "chunk": event.chunk, "chunks": event.chunks, "memory": event.memory}


def _read_answer(done: Done, chunks: int) -> bodies.ReadAnswer:
    session = done.session
    return bodies.ReadAnswer(
        session_id=session.id, turn=session.turn, memory=session.memory, chunks=chunks, calls=call_bodies(done.calls)
    )


def _row(session: Session) -> bodies.SessionRow:
    return bodies.SessionRow(
        session_id=session.id,
        turn=session.turn,
        created=session.created,
        updated=session.updated,
        expires=session.expires,
        memory_chars=len(session.memory),
    )


def _body(session: Session) -> bodies.SessionBody:
    return bodies.SessionBody(
        session_id=session.id,
        memory=session.memory,
        turn=session.turn,
        created=session.created,
        updated=session.updated,
        expires=session.expires,
        model=session.model,
        recent=[bodies.MessageBody(role=m.role, content=m.content) for m in session.recent],
    )
