"""The MCP server as agents start it: a process of its own, spoken to by the protocol's own client, over both
transports, in front of the real memory server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from notebook_model import notebook_agent
from plug_models import run_example
from serve_here import serving

pytest.importorskip("mcp")
from mcp import Client, StdioServerParameters

from memtrain.client import MemoryClient
from memtrain.commands.mcp import mcp as mcp_command
from memtrain.errors import UserError
from memtrain.plugs.files import ReadableFolders
from memtrain.plugs.mcp import make_server, serve_http
from memtrain.serving.owners import Owners
from memtrain.serving.store import Store

TOOLS = ["forget", "read_document", "recall", "remember"]
LONG = "FACT inside=deep\n\n" + "\n\n".join("word " * 60 for _ in range(8)) + "\n\nFACT end=reached"
Talk = Callable[[Client], Awaitable[None]]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    with serving(notebook_agent()[0], tmp_path / "sessions.db") as url:
        yield url


def stdio(url: str, *more: str, **environment: str) -> StdioServerParameters:
    arguments = ["-m", "memtrain", "mcp", "--url", url, "--session", "notes", *more]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ) | environment)


@contextmanager
def over_http(url: str, *more: str) -> Iterator[str]:
    """The address of a server process over HTTP."""
    command = [sys.executable, "-m", "memtrain", "mcp", "--url", url, "--session", "notes", "--http", "0", *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stdout is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("serving notes at http://127.0.0.1:"), line + process.stderr.read()
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            out, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert out == ""


def talk(server: StdioServerParameters | str, work: Talk, mode: str = "auto") -> None:
    async def run() -> None:
        async with asyncio.timeout(30), Client(server, mode=mode) as client:
            await work(client)

    asyncio.run(run())


async def call(client: Client, name: str, **arguments: Any) -> str:
    """The text of a call that went well."""
    result = await client.call_tool(name, arguments)
    text = "".join(part.text for part in result.content)
    assert not result.is_error, text
    return text


async def refused(client: Client, name: str, **arguments: Any) -> str:
    """The sentence of a call that did not."""
    result = await client.call_tool(name, arguments)
    text = "".join(part.text for part in result.content)
    assert result.is_error, text
    assert "Traceback" not in text
    return text


async def whole_life(client: Client) -> None:
    """Everything the tools do, in the order an agent would."""
    listed = await client.list_tools()
    assert sorted(tool.name for tool in listed.tools) == TOOLS
    assert client.instructions is not None
    assert "recall before you say that you do not know" in client.instructions
    for one in listed.tools:
        assert one.description is not None
        assert len(one.description) > 60
        for told in one.input_schema["properties"].values():
            assert told["description"]
    assert "Nothing" in await call(client, "recall", question="hotel?")
    await call(client, "remember", text="FACT hotel=Ritz")
    await call(client, "remember", text="FACT hotel=Savoy")
    assert await call(client, "recall", question="hotel?") == "Savoy"
    steps: list[tuple[float, float | None, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        steps.append((done, total, message))

    result = await client.call_tool("read_document", {"text": LONG}, progress_callback=progress)
    assert f"Read {len(LONG)} characters" in result.content[0].text
    for _ in range(50):  # over HTTP the last notes of progress may come after the answer
        if steps and steps[-1][0] == steps[-1][1]:
            break
        await asyncio.sleep(0.02)
    assert [step[0] for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) > 3
    assert {step[1] for step in steps} == {len(steps)}
    assert steps[0][2] == f"read part 1 of {len(steps)}"
    assert await call(client, "recall", question="inside?") == "deep"
    assert await call(client, "recall", question="end?") == "reached"
    assert await call(client, "recall", question="hotel?") == "Savoy"
    assert "forgotten" in await call(client, "forget")
    assert "Nothing" in await call(client, "forget")
    assert "Nothing" in await call(client, "recall", question="hotel?")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_over_standard_input_and_output(memory: str, mode: str) -> None:
    """Both generations of the protocol: with the handshake of old, and without."""
    talk(stdio(memory), whole_life, mode)


@pytest.mark.parametrize("mode", ["auto", pytest.param("legacy", marks=pytest.mark.slow)])
def test_over_http(memory: str, mode: str) -> None:
    with over_http(memory) as address:
        talk(address, whole_life, mode)


def test_what_is_remembered_outlasts_the_process_and_stays_in_its_session(memory: str) -> None:
    async def write(client: Client) -> None:
        await call(client, "remember", text="FACT hotel=Ritz")

    async def read(client: Client) -> None:
        assert await call(client, "recall", question="hotel?") == "Ritz"

    talk(stdio(memory), write)
    with MemoryClient(memory) as client:
        client.edit("other", "FACT hotel=Savoy")
        assert client.get("notes").memory == "FACT hotel=Ritz"
    talk(stdio(memory), read)


def test_the_key_comes_from_the_environment_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "sessions.db"))
    key = Owners(store).add("ada")
    store.close()

    async def write(client: Client) -> None:
        await call(client, "remember", text="FACT hotel=Ritz")

    async def denied(client: Client) -> None:
        assert "none was given" in await refused(client, "remember", text="FACT hotel=Ritz")
        assert "none was given" in await refused(client, "recall", question="hotel?")
        assert "none was given" in await refused(client, "forget")

    with serving(notebook_agent()[0], tmp_path / "sessions.db") as url:
        talk(stdio(url, "--key-env", "MEMORY_KEY", MEMORY_KEY=key), write)
        talk(stdio(url), denied)


def test_a_key_that_is_not_there_is_said_so() -> None:
    with pytest.raises(UserError, match="NOT_THERE"):
        mcp_command("notes", key_env="NOT_THERE")


def test_an_extra_that_is_missing_is_named() -> None:
    lines = [
        "import importlib, sys",
        "from memtrain.errors import UserError",
        "for room, library in {'mcp': 'mcp', 'langchain': 'langchain_core', 'llama_index': 'llama_index'}.items():",
        "    sys.modules[library] = None",
        "    try: importlib.import_module(f'memtrain.plugs.{room}')",
        "    except UserError as error: print(error)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    extras = ["mcp", "langchain", "llama-index"]
    assert [line.partition("pip install ")[2] for line in done.stdout.splitlines()] == [
        f"'memtrain[{e}]'" for e in extras
    ]


def test_a_memory_server_that_is_gone_is_said_to_the_model() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}"

    async def ask(client: Client) -> None:
        for name, arguments in {"recall": {"question": "x"}, "remember": {"text": "x"}, "forget": {}}.items():
            assert "memtrain serve" in await refused(client, name, **arguments)

    talk(stdio(url), ask)


def test_only_text_files_below_the_roots_are_read(memory: str, tmp_path: Path) -> None:
    root, outside = tmp_path / "notes", tmp_path / "secret.txt"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "book.txt").write_text(LONG)
    (root / "empty.txt").write_text(" \n")
    (root / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\xff")
    outside.write_text("FACT secret=leaked")
    (root / "link.txt").symlink_to(outside)
    (root / "folder-link").symlink_to(tmp_path)
    (root / "inner-link.txt").symlink_to(root / "deep" / "book.txt")
    os.mkfifo(root / "pipe.txt")

    async def read(client: Client) -> None:
        for path in ("deep/book.txt", str(root / "deep" / "book.txt"), "deep/../deep/book.txt", "inner-link.txt"):
            assert "Ask about it" in await call(client, "read_document", path=path, question="end?")
        missing = await refused(client, "read_document", path="nothing.txt")
        for path in (
            "../secret.txt",
            str(outside),
            "link.txt",
            "folder-link/secret.txt",
            "deep",
            ".",
            "pipe.txt",
            "a\0b",
        ):
            said = await refused(client, "read_document", path=path)
            # In the same words: whether something is outside is nobody's business.
            assert said.replace(repr(path), "NAME") == missing.replace(repr("nothing.txt"), "NAME")
        assert "not a text file" in await refused(client, "read_document", path="picture.png")
        assert "is empty" in await refused(client, "read_document", path="empty.txt")
        assert "either path or text" in await refused(client, "read_document")
        assert "either path or text" in await refused(client, "read_document", path="deep/book.txt", text="x")
        assert await call(client, "recall", question="secret?") == "unknown"

    talk(stdio(memory, "--root", str(root)), read)
    with pytest.raises(UserError, match="--root FOLDER"):
        ReadableFolders([]).read(str(root / "deep" / "book.txt"))


def test_files_have_a_longest_and_roots_must_be_folders(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 101)
    (tmp_path / "fine.txt").write_text("\ufeffgrüße", encoding="utf-8")
    folders = ReadableFolders([tmp_path], most_bytes=100)
    with pytest.raises(UserError, match="longer than 100 bytes"):
        folders.read("long.txt")
    assert folders.read("fine.txt") == "grüße"
    with pytest.raises(UserError, match="is not a folder"):
        ReadableFolders([tmp_path / "fine.txt"])


def test_a_folder_swapped_for_a_link_while_it_is_opened_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "deep", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(folder.name)
    folders = ReadableFolders([root])
    assert folders.read("deep/a.txt") == "deep"
    real_open = os.open

    def swap_then_open(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path) == str(root):  # the name has been resolved by now
            (root / "deep").rename(tmp_path / "moved")
            (root / "deep").symlink_to(elsewhere)
        return real_open(path, *arguments, **more)

    monkeypatch.setattr(os, "open", swap_then_open)
    monkeypatch.setattr(os, "supports_dir_fd", {swap_then_open})
    with pytest.raises(UserError, match="no readable text file"):
        folders.read("deep/a.txt")


def test_other_sites_and_other_names_are_refused(memory: str) -> None:
    """A page in the browser of this machine must not reach the tools."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    kinds = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    with over_http(memory) as address:
        assert httpx2.post(address, json=body, headers=kinds | {"host": "evil.example"}).status_code == 421
        assert httpx2.post(address, json=body, headers=kinds | {"origin": "http://evil.example"}).status_code == 403
        big = httpx2.post(address, content=b"[" + b" " * (9 * 2**20), headers=kinds)
        assert big.status_code == 413


def test_a_cancelled_call_stops_the_work(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=0.3)

    async def give_up(client: Client) -> None:
        begun = asyncio.Event()

        async def progress(*_: Any) -> None:
            begun.set()

        reading = asyncio.create_task(client.call_tool("read_document", {"text": LONG}, progress_callback=progress))
        await asyncio.wait_for(begun.wait(), 10)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        for _ in range(60):
            if model.cancelled:
                return
            await asyncio.sleep(0.05)

    with serving(agent, tmp_path / "sessions.db") as url:
        talk(stdio(url), give_up)
        assert model.cancelled == 1
        with MemoryClient(url) as client:
            assert list(client.sessions()) == []


def test_what_cannot_be_is_said_when_the_server_starts(tmp_path: Path) -> None:
    for url, session, roots, said in (
        ("nowhere", "notes", (), "not the address"),
        ("http://127.0.0.1:1", "a b", (), "cannot name a session"),
        ("http://127.0.0.1:1", "notes", (tmp_path / "none",), "is not a folder"),
    ):
        with pytest.raises(UserError, match=said):
            make_server(url, session, "", roots)
    server = make_server("http://127.0.0.1:1", "notes")
    with socket.create_server(("127.0.0.1", 0)) as door, pytest.raises(UserError, match="cannot be opened"):
        serve_http(server, door.getsockname()[1])


def test_the_example_runs_as_it_stands(memory: str, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(LONG)
    facts = ("--remember", "FACT hotel=Ritz", "--remember", "FACT hotel=Savoy")
    known = ("book.txt", "What is inside?", "--root", str(tmp_path), *facts)
    with over_http(memory, "--root", str(tmp_path)) as address:
        ways = [
            run_example("mcp_client.py", *known, "--url", memory),
            run_example("mcp_client.py", *known, "--http", address),
        ]
    for printed in ways:
        assert "recall: Savoy" in printed
        assert "recall: deep" in printed
        assert "read part 1 of" in printed
        assert printed.strip().endswith("forget: Everything is forgotten.")
