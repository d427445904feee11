"""A server of the Model Context Protocol in front of ``memtrain serve`` (extra ``mcp``): one session's memory as tools.

The memory lives in ``memtrain serve``; this process keeps nothing. Over standard input and output it serves the one
program that started it, over HTTP the programs of this machine.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from memtrain.client import AsyncMemoryClient, Refused
from memtrain.client.wire import Wire
from memtrain.errors import UserError, first_line
from memtrain.plugs.common import missing
from memtrain.plugs.files import ReadableFolders

try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Context
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as error:
    raise missing("mcp", error) from None

HOST = "127.0.0.1"
BODY_BYTES = 8 * 2**20
"""Longest request over HTTP: a text of MOST_BYTES, written as JSON."""
INSTRUCTIONS = (
    "A memory of bounded length that lasts: what is remembered here is there in later conversations. Call recall "
    "before you say that you do not know something about the user, an earlier conversation or a document read before; "
    "call remember when you learn something that will matter later; give long texts to read_document instead of "
    "reading them in the conversation."
)
NOTHING = "Nothing has been remembered yet."


def make_server(url: str, session: str, key: str = "", roots: Sequence[Path] = ()) -> MCPServer[Any]:
    """The server, which speaks when it is run. Raises :class:`UserError` for a bad address or folder."""
    folders = ReadableFolders(roots)
    Wire(url, key).place(session)  # what is wrong with them is said now, not at the first call

    @asynccontextmanager
    async def connection(_: MCPServer[Any]) -> AsyncIterator[AsyncMemoryClient]:
        async with AsyncMemoryClient(url, key) as client:
            yield client

    server = MCPServer("memtrain", instructions=INSTRUCTIONS, lifespan=connection, log_level="WARNING")

    async def read_in(ctx: Context[Any, Any], text: str, question: str) -> int:
        """Read a text into the memory, and tell how far it is; gives the number of pieces."""

        async def tell(chunk: int, chunks: int, _: str) -> None:
            await ctx.report_progress(chunk, chunks, f"read part {chunk} of {chunks}")

        try:
            return (await ctx.request_context.lifespan_context.read(session, text, question, tell)).chunks
        except UserError as error:
            raise ToolError(str(error)) from None

    @server.tool(annotations=ToolAnnotations(title="Remember", read_only_hint=False, destructive_hint=False))
    async def remember(
        text: Annotated[
            str, Field(min_length=1, description="What to remember, in full sentences that name who and what is meant.")
        ],
        ctx: Context[Any, Any],
    ) -> str:
        """Add something to the long-term memory, or correct it: wishes, decisions, names, dates, results.

        Call it as soon as you learn something that will matter later, and again when it changes: a new fact takes the
        place of an old one that it contradicts. The memory is short: leave out small talk and what can be looked up.
        """
        await read_in(ctx, text, "")
        return "Remembered."

    @server.tool(annotations=ToolAnnotations(title="Recall", read_only_hint=True))
    async def recall(
        question: Annotated[
            str, Field(min_length=1, description="One question in full, such as: Which hotel did the user choose?")
        ],
        ctx: Context[Any, Any],
    ) -> str:
        """Ask the long-term memory: earlier conversations, and documents read before.

        Call it before you say that you do not know, and before you ask the user again. It answers from its notes alone
        and may not know; what the user says now is newer than what it holds.
        """
        try:
            return str((await ctx.request_context.lifespan_context.ask(session, question)).answer) or "I do not know."
        except Refused as error:
            if error.status == 404:
                return NOTHING
            raise ToolError(str(error)) from None
        except UserError as error:
            raise ToolError(str(error)) from None

    @server.tool(annotations=ToolAnnotations(title="Read a document", read_only_hint=False, destructive_hint=False))
    async def read_document(
        ctx: Context[Any, Any],
        path: Annotated[str, Field(description="A text file that the server may read. Give this or text.")] = "",
        text: Annotated[str, Field(description="The text itself, of any length. Give this or path.")] = "",
        question: Annotated[
            str, Field(description="What it is read for; notes are kept with that in mind. May be left out.")
        ] = "",
    ) -> str:
        """Read a text of any length into the long-term memory, piece by piece, without filling this conversation.

        Use it for anything longer than a few paragraphs; then ask about it with recall. It can take minutes; progress
        is reported.
        """
        if bool(path) == bool(text.strip()):
            raise ToolError("give either path or text")
        try:
            document = await asyncio.to_thread(folders.read, path) if path else text
        except UserError as error:
            raise ToolError(str(error)) from None
        if not document.strip():
            raise ToolError(f"{path!r} is empty")
        parts = await read_in(ctx, document, question)
        return f"Read {len(document)} characters in {parts} part(s). Ask about it with recall."

    @server.tool(annotations=ToolAnnotations(title="Forget", read_only_hint=False, destructive_hint=True))
    async def forget(ctx: Context[Any, Any]) -> str:
        """Delete everything that the long-term memory holds. Only when the user asks for it: there is no way back."""
        try:
            gone = await ctx.request_context.lifespan_context.forget(session)
        except UserError as error:
            raise ToolError(str(error)) from None
        return "Everything is forgotten." if gone else NOTHING

    return server


def serve_stdio(server: MCPServer[Any]) -> None:
    """Answer the program at the other end of standard input and output, until it closes them."""
    server.run("stdio")


def serve_http(server: MCPServer[Any], port: int, on_start: Callable[[str], None] = lambda address: None) -> None:
    """Answer programs of this machine over streamable HTTP until Ctrl-C; 0 takes any port that is free.

    ``on_start(address)`` is called once the port is ours. Requests that name another host or come from another site's
    page are refused. Raises :class:`UserError` where the port cannot be had.
    """
    import uvicorn

    try:
        door = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of {HOST} cannot be opened ({first_line(error)}); choose another --http"
        ) from None
    with door:
        on_start(f"http://{HOST}:{door.getsockname()[1]}/mcp")
        app = server.streamable_http_app(host=HOST, max_request_body_size=BODY_BYTES)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[door])
