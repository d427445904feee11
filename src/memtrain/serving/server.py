"""What the routes share: the agents by name, the sessions, the limits, and how a turn is run and counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Request

from memtrain.memory.chat import Call, ChatAgent, OnEvent, Reading
from memtrain.serving.contract import SESSION_ID, CallBody
from memtrain.serving.errors import ApiError, ErrorBody
from memtrain.serving.metrics import Metrics
from memtrain.serving.sessions import Done, Sessions
from memtrain.serving.streaming import Running
from memtrain.settings import ServeSettings

T = TypeVar("T")

REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Refused; the sentence says why."},
    "5XX": {"model": ErrorBody, "description": "Not done; nothing of the request is kept."},
}
"""What every route may answer besides its own."""
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}}
EVENTS = {"content": {"text/event-stream": {"schema": _EVENT}}}
"""The other form of a 200 that may be streamed."""


@dataclass
class Server:
    """One application's state."""

    agents: Mapping[str, ChatAgent]
    """By name; the first is the default."""
    sessions: Sessions
    settings: ServeSettings
    metrics: Metrics
    running: set[asyncio.Task[Any]] = field(default_factory=set)
    """Turns under way, for the server's end."""
    begun: float = field(default_factory=time.time)

    def agent(self, name: str | None) -> tuple[str, ChatAgent]:
        """The agent of that name and its name; 404 for a name that is not served."""
        if name is None:
            name = next(iter(self.agents))
        if name not in self.agents:
            raise ApiError(
                404, f"there is no model {name}; served are {', '.join(self.agents)}", code="model_not_found"
            )
        return name, self.agents[name]

    def run(
        self, kind: str, work: Callable[[OnEvent], Coroutine[Any, Any, T]], calls: Callable[[T], Sequence[Call]]
    ) -> Running[T]:
        """Start a turn (``chat``, ``read``, ``ask``) in a task of its own, and count what it does."""

        async def counted(on_event: OnEvent) -> T:
            def told(event: Any) -> None:
                if isinstance(event, Reading):
                    self.metrics.chunks.inc()
                on_event(event)

            result = await work(told)
            self.metrics.count_turn(kind, calls(result))
            return result

        running = Running(counted, self.settings.request_seconds, self.metrics)
        self.running.add(running.task)
        running.task.add_done_callback(self.running.discard)
        return running

    async def stop(self) -> None:
        """End what is still under way; commits that have begun are finished."""
        tasks = list(self.running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def calls_of(done: Done) -> Sequence[Call]:
    """The model's calls of a finished turn."""
    return done.calls


def call_bodies(calls: Sequence[Call]) -> list[CallBody]:
    """As they are sent."""
    return [CallBody(kind=c.kind, prompt_tokens=c.prompt_tokens, completion_tokens=c.completion_tokens) for c in calls]


def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


def _json_only(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the body as JSON, with Content-Type: application/json")


Owner = Annotated[str, Depends(_owner)]
"""Whose sessions a request speaks of: the gate has found it out."""
JSON_ONLY = Depends(_json_only)
SessionPath = Annotated[str, Path(pattern=SESSION_ID, max_length=128, description="The session's id.")]
