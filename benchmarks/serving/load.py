"""64 conversations at once for ten minutes: is a memory ever lost or mixed up, how long do turns take, does it grow?

    python benchmarks/serving/load.py --model trained=runs/demo --minutes 10            # a real model in the process
    python benchmarks/serving/load.py --notebook --minutes 10                           # perfect notes behind it
    python benchmarks/serving/load.py --notebook --kills 20                             # kill -9 during writes

With the notebook every planted fact must be in its own session's memory and nowhere else, at every turn and at the end;
with a real model, which may forget, no session's code word may ever stand in another's memory, and what the server
keeps must be what it acknowledged. Writes load-NAME.json into --out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
from server import Server

UPSTREAM_PORT = 9137
CODES: set[str] = set()
"""Code words of all sessions."""


@dataclass
class Conversation:
    """What one client knows of its session."""

    number: int
    code: str
    turn: int = 0
    """Acknowledged."""
    memory: str = ""
    """Acknowledged."""
    acknowledged: dict[int, str] = field(default_factory=dict)
    """Memories by turn."""
    facts: dict[str, str] = field(default_factory=dict)
    """Planted and acknowledged."""

    @property
    def session(self) -> str:
        """Its id."""
        return f"load-{self.number}"


@dataclass
class Seen:
    """What came of it all."""

    seconds: list[float] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    resident: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, MiB)."""

    def problem(self, kind: str, example: str) -> None:
        """Note a problem."""
        self.problems[kind] += 1
        if len(self.examples) < 20:
            self.examples.append(f"{kind}: {example}")


def message(one: Conversation, draw: random.Random, exact: bool) -> tuple[str, dict[str, str]]:
    """What the client says next, and the facts in it."""
    if not exact:
        if one.turn % 4 == 0:
            return f"Please remember the code word of this talk, it is {one.code}.", {}
        return draw.choice(["How are you today?", "What do you think of it?", "Tell me what we spoke about."]), {}
    facts = {f"k{draw.randrange(12)}": f"{one.code}-{one.turn + 1}"}
    return "please note " + " ".join(f"{key}={value}" for key, value in facts.items()), facts


async def speak(server: Server, model: str, one: Conversation, exact: bool, until: float, seen: Seen) -> None:
    """Turn after turn until the time is over or the server has gone."""
    draw = random.Random(one.number * 7919 + one.turn)
    async with server.client() as client:
        while time.monotonic() < until:
            said, facts = message(one, draw, exact)
            began = time.perf_counter()
            try:
                if one.turn % 2:
                    memory, turn = await streamed(client, model, said, one.session)
                else:
                    answer = await client.chat.completions.create(
                        model=model,
                        messages=[{"role": "user", "content": said}],
                        extra_body={"session_id": one.session},
                    )
                    memory, turn = (answer.model_extra["memtrain"][key] for key in ("memory", "turn"))
            except (openai.APIConnectionError, openai.APIStatusError, httpx2.HTTPError, EOFError) as error:
                if server.process is not None and server.process.poll() is None:
                    await asyncio.sleep(0.2)
                    if server.process.poll() is None:
                        seen.problem("failed request", f"{one.session}: {type(error).__name__}: {error}")
                return
            seen.seconds.append(time.perf_counter() - began)
            if turn != one.turn + 1:
                seen.problem("turn counted wrongly", f"{one.session}: {turn} after {one.turn}")
            one.turn, one.memory = turn, memory
            one.acknowledged[turn] = memory
            one.facts |= facts
            check(one, memory, exact, seen)


async def streamed(client: Any, model: str, said: str, session: str) -> tuple[str, int]:
    """The same, streamed; it is acknowledged when the last piece has come."""
    found: tuple[str, int] | None = None
    ended = False
    stream = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": said}], extra_body={"session_id": session}, stream=True
    )
    async for chunk in stream:
        told = (chunk.model_extra or {}).get("memtrain") or {}
        if told.get("event") == "memory":
            found = told["memory"], told["turn"]
        ended = ended or bool(chunk.choices and chunk.choices[0].finish_reason)
    if found is None or not ended:
        raise EOFError("the stream broke off")
    return found


def check(one: Conversation, memory: str, exact: bool, seen: Seen) -> None:
    """Nothing of others; with perfect notes everything of its own."""
    strangers = [code for code in re.findall(r"code-\d{5}(?!\d)", memory) if code != one.code and code in CODES]
    if strangers:
        seen.problem("mixed up", f"{one.session} ({one.code}) holds {strangers[0]}")
    if exact:
        missing = {key: value for key, value in one.facts.items() if f"{key}={value}" not in memory}
        if missing:
            seen.problem("fact lost", f"{one.session} turn {one.turn}: {missing}")


async def compare(server: Server, conversations: list[Conversation], exact: bool, seen: Seen) -> None:
    """Is what the server keeps what it acknowledged?"""
    async with httpx2.AsyncClient(base_url=server.address, timeout=60) as client:
        for one in conversations:
            if not one.turn:
                continue
            kept = (await client.get(f"/v1/memory/{one.session}/export")).json()
            memories = {record["turn"]: record["memory"] for record in kept["turns"]}
            wrong = [turn for turn, memory in one.acknowledged.items() if memories.get(turn) != memory]
            if wrong:
                seen.problem("acknowledged turn not kept", f"{one.session}: turns {wrong[:5]}")
            # A turn may be written whose acknowledgement the kill cut off: it counts from here on.
            before, one.turn, one.memory = one.turn, kept["session"]["turn"], kept["session"]["memory"]
            for key, value, turn in re.findall(r"\b(k\d+)=(code-\d{5}-(\d+))", one.memory):
                if before < int(turn) <= one.turn:
                    one.facts[key] = value
            one.acknowledged |= {turn: memory for turn, memory in memories.items() if turn > max(one.acknowledged)}
            check(one, one.memory, False, seen)
            if exact:
                missing = [f"{k}={v}" for k, v in one.facts.items() if f"{k}=" not in one.memory]
                if missing:
                    seen.problem("fact lost", f"{one.session}: {missing[:3]}")


async def watch(server: Server, until: float, seen: Seen) -> None:
    """Resident memory every five seconds, and a line a minute."""
    began = time.monotonic()
    while time.monotonic() < until:
        seen.resident.append((time.monotonic() - began, server.resident_mib()))
        if len(seen.resident) % 12 == 1:
            print(
                f"{seen.resident[-1][0]:5.0f} s: {len(seen.seconds)} turns, {seen.resident[-1][1]:.0f} MiB", flush=True
            )
        await asyncio.sleep(min(5.0, max(0.0, until - time.monotonic())))


async def load(server: Server, model: str, conversations: list[Conversation], exact: bool, seconds: float, seen: Seen):
    """All of them at once."""
    until = time.monotonic() + seconds
    speakers = [speak(server, model, one, exact, until, seen) for one in conversations]
    await asyncio.gather(watch(server, until, seen), *speakers)


def killing(server: Server, model: str, conversations: list[Conversation], kills: int, seen: Seen) -> None:
    """Kill the server in the middle of it all, again and again; start it on the same store and compare."""
    draw = random.Random(0)

    async def round_of_turns() -> None:
        async def killer() -> None:
            await asyncio.sleep(draw.uniform(0.5, 3.0))
            server.kill()

        far = time.monotonic() + 3600
        await asyncio.gather(killer(), *(speak(server, model, one, True, far, seen) for one in conversations))

    for number in range(kills):
        server.start()
        asyncio.run(compare(server, conversations, True, seen))
        asyncio.run(round_of_turns())
        print(
            f"kill {number + 1}: {sum(len(one.acknowledged) for one in conversations)} turns acknowledged", flush=True
        )
    server.start()
    asyncio.run(compare(server, conversations, True, seen))
    server.stop()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="trained=runs/demo", help="NAME=MODEL that memtrain serve is to load")
    parser.add_argument("--notebook", action="store_true", help="perfect notes behind the server instead of a model")
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=0, help="instead: kill -9 so often")
    parser.add_argument("--out", type=Path, default=Path("docs/results/serving"))
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="settings of memtrain serve")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = [
        "serve.requests_per_minute=1000000",
        "chat.context_tokens=512",
        "chat.reply_tokens=48",
        *options.settings,
    ]
    draw = random.Random(11)
    codes = draw.sample(range(10_000, 99_999), options.sessions)
    conversations = [Conversation(number, f"code-{code}") for number, code in enumerate(codes)]
    CODES.update(one.code for one in conversations)
    seen, name = Seen(), "notebook" if options.notebook else options.model.partition("=")[0]
    with tempfile.TemporaryDirectory() as folder:
        upstream = None
        arguments = [options.model]
        if options.notebook:
            script = Path(__file__).with_name("notebook_upstream.py")
            upstream = subprocess.Popen([sys.executable, str(script), "--port", str(UPSTREAM_PORT)])
            time.sleep(3)
            arguments = ["--upstream", f"http://127.0.0.1:{UPSTREAM_PORT}/v1", "--upstream-model", "notebook"]
            settings.append("memory.memory_tokens=256")
        server = Server([*arguments, "--set", *settings], Path(folder, "s.db"), Path(folder, "log"))
        try:
            if options.kills:
                killing(server, name, conversations, options.kills, seen)
            else:
                server.start()
                asyncio.run(load(server, name, conversations, options.notebook, options.minutes * 60, seen))
                asyncio.run(compare(server, conversations, options.notebook, seen))
                server.stop()
        finally:
            if upstream is not None:
                upstream.kill()
    write(options, name, conversations, seen)


def write(options: argparse.Namespace, name: str, conversations: list[Conversation], seen: Seen) -> None:
    """The numbers, on the screen and as JSON."""
    turns = [len(one.acknowledged) for one in conversations]
    found: dict[str, Any] = {
        "model": name,
        "sessions": len(conversations),
        "kills": options.kills,
        "minutes": 0 if options.kills else options.minutes,
        "turns": sum(turns),
        "fewest_turns_of_a_session": min(turns),
        "problems": dict(seen.problems),
        "examples": seen.examples,
        "seconds_p50": float(np.percentile(seen.seconds, 50)),
        "seconds_p95": float(np.percentile(seen.seconds, 95)),
        "seconds_max": max(seen.seconds),
    }
    late = [(at, size) for at, size in seen.resident if at > 60 * options.minutes * 0.3]
    if len(late) > 4:
        ats, sizes = np.array(late).T
        found |= {
            "resident_mib_start": seen.resident[0][1],
            "resident_mib_end": float(sizes[-1]),
            "resident_mib_most": max(size for _, size in seen.resident),
            "growth_mib_a_minute": float(np.polyfit(ats / 60, sizes, 1)[0]),
        }
    print(json.dumps(found, indent=1))
    kind = f"kill-{name}" if options.kills else f"load-{name}"
    (options.out / f"{kind}.json").write_text(json.dumps(found | {"resident": seen.resident}, indent=1) + "\n")
    sys.exit(1 if seen.problems else 0)


if __name__ == "__main__":
    main()
