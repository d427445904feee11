"""What an agent does with the tools of `memtrain mcp`: remember, correct, read a document, recall, forget.

pip install 'memtrain[mcp]'
memtrain serve MODEL &
python mcp_client.py --url http://127.0.0.1:8080 --session notes --root . README.md "What is it about?"

With --http ADDRESS it speaks to a server that was started with `memtrain mcp --http PORT` instead of starting one.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a text file below --root")
    parser.add_argument("question", help="what to ask about it")
    parser.add_argument("--remember", action="append", help="a fact; a later one may correct an earlier one")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of memtrain serve")
    parser.add_argument("--session", default="notes")
    parser.add_argument("--root", default=".", help="folder whose text files may be read")
    parser.add_argument("--http", help="address of a running memtrain mcp")
    given = parser.parse_args()
    command = ["mcp", "--url", given.url, "--session", given.session, "--root", str(Path(given.root).resolve())]
    server = given.http or StdioServerParameters(command=sys.executable, args=["-m", "memtrain", *command])

    async def progress(done: float, total: float | None, message: str | None) -> None:
        print(f"   {message}", flush=True)

    async with Client(server) as client:

        async def call(tool: str, **arguments: Any) -> None:
            result = await client.call_tool(tool, arguments, progress_callback=progress)
            print(f"{tool}: {result.content[0].text}", flush=True)

        for tool in (await client.list_tools()).tools:
            print(f"{tool.name}: {(tool.description or '').splitlines()[0]}")
        for fact in given.remember or (
            "The user has booked the hotel Ritz.",
            "The user has changed to the hotel Savoy.",
        ):
            await call("remember", text=fact)
        await call("read_document", path=given.file, question=given.question)
        await call("recall", question="Which is the hotel?")
        await call("recall", question=given.question)
        await call("forget")


asyncio.run(main())
