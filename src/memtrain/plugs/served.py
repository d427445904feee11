"""The memory of an agent written by ``memtrain serve``: by a model trained for it, whatever model the agent talks with.

Nothing stays on the server: the memory is put into a session of its own, the text is read into it, the memory is taken
out and the session deleted. So the agent's own state (a checkpointer, a block) is the one place where memories are
kept, and going back in it is going back.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from memtrain.client import DEFAULT_URL, AsyncMemoryClient
from memtrain.errors import UserError
from memtrain.memory.text_model import Message
from memtrain.plugs.common import finished

EXPIRES = 3600.0
"""Seconds after which a session that was left behind (a process killed while it waited) is deleted."""


class MemoryWriter(Protocol):
    """What folds messages and texts into a memory: :class:`memtrain.memory.chat.ChatAgent`, or a server."""

    async def remember(self, memory: str, messages: Sequence[Message]) -> tuple[str, Any]:
        """The memory after these messages."""
        ...

    async def read(self, memory: str, text: str, question: str = "") -> tuple[str, Any]:
        """The memory after this text, read for this question."""
        ...


class ServedMemory:
    """Stands where a plug takes a model: memories are then written by the server at ``url``.

    ``memory_tokens``: the longest memory that the server writes (its recipe's ``memory.memory_tokens``); a longer one
    is cut. Raises :class:`memtrain.errors.UserError` for a bad address, and later for what the server refuses.
    """

    def __init__(self, url: str = DEFAULT_URL, key: str = "", *, memory_tokens: int = 1024) -> None:
        self.url, self.memory_tokens, self._key = url, memory_tokens, key
        self._client()

    async def remember(self, memory: str, messages: Sequence[Message]) -> tuple[str, Any]:
        """See :class:`MemoryWriter`."""
        return await self.read(memory, "\n".join(f"{one.role.capitalize()}: {one.content.strip()}" for one in messages))

    async def read(self, memory: str, text: str, question: str = "") -> tuple[str, Any]:
        """See :class:`MemoryWriter`."""
        session = f"plug-{uuid.uuid4().hex}"
        async with self._client() as client:  # one for each call: the loop of the last one may have ended
            await client.edit(session, memory, expires_in=EXPIRES)
            try:
                found = await client.read(session, text, question)
            finally:
                with contextlib.suppress(UserError):  # it expires anyway
                    await client.forget(session)
        return finished(found.memory, None, self.memory_tokens)[0] or memory, ()

    def _client(self) -> AsyncMemoryClient:
        return AsyncMemoryClient(self.url, self._key)
