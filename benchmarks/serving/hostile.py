"""Thousands of malformed and malicious requests against a real `memtrain serve`: nothing fails and nothing leaks.

    python benchmarks/serving/hostile.py --generated 5000 --handmade 6000

Needs the extras of the server and `schemathesis`; no model: an upstream that keeps perfect notes takes its place, and
sees whether any prompt holds what it should not. Two owners have sessions with secret words; a third one with a key,
and somebody with none, attack. Writes hostile.json into --out; ends with status 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any
from urllib.request import Request, urlopen

import hostile_bait  # noqa: F401  (registers its kinds, as the next one does)
import hostile_doors  # noqa: F401
import notebook_upstream
import uvicorn
from hostile_cases import KINDS, World
from hostile_judge import Judge
from hostile_wire import Answer, fire
from server import Server

SESSIONS = ("trip", "diary", "auto-0", "mine-1")
"""Names of the victims' sessions that the attacker knows; the last is also one of the attacker's own."""
GROWTH_MIB = 128
"""Resident memory may grow by so much over the whole run."""
NO_HTTP = "Invalid HTTP request received."
QUIET = (NO_HTTP, "Unsupported upgrade request.", "No supported WebSocket library detected.")
"""All that the log may say: the web server on what never reached the application, or asked it for another protocol."""
SCHEMATHESIS = (
    # name, further arguments, share of the generated requests
    ("all phases, right and wrong data, with a key", ["--mode", "all"], True, 0.7),
    ("wrong data, without a key", ["--mode", "negative", "--phases", "coverage,fuzzing"], False, 0.15),
    (
        "right data and chains of requests, with a key",
        ["--mode", "positive", "--phases", "fuzzing,stateful"],
        True,
        0.15,
    ),
)


class Watched:
    """The upstream, looking for secrets in every prompt that it gets."""

    def __init__(self) -> None:
        self.secrets: tuple[str, ...] = ()
        self.prompts, self.told = 0, 0
        self.door = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.door.getsockname()[1]}/v1"
        self._server = uvicorn.Server(uvicorn.Config(self, log_level="error"))
        threading.Thread(target=self._server.run, args=([self.door],), daemon=True).start()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""

        async def watched() -> Any:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.request" and not message.get("more_body") and body:
                self.prompts += 1
                self.told += any(secret.encode() in body for secret in self.secrets)
            return message

        await notebook_upstream.app(scope, watched if scope["type"] == "http" else receive, send)


class Owner:
    """A key, and requests with it."""

    def __init__(self, name: str, store: Path) -> None:
        self.name, self.store, self.address = name, store, ""
        self.key = self._keys("add").strip()

    def revoke(self) -> None:
        self._keys("revoke")

    def _keys(self, action: str) -> str:
        command = [sys.executable, "-m", "memtrain", "keys", action, self.name, "--store", str(self.store)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = Request(
            self.address + path, None if body is None else json.dumps(body).encode(), headers, method=method
        )
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def everything(self) -> dict[str, Any]:
        """All sessions as they are exported."""
        names = [row["session_id"] for row in self.ask("GET", "/v1/memory?limit=1000")["data"]]
        return {name: self.ask("GET", f"/v1/memory/{name}/export") for name in names}


def plant(owner: Owner) -> dict[str, str]:
    """Sessions with a secret word each, one of them under a name that is itself secret; session -> word."""
    words = {}
    for session in (*SESSIONS, f"hidden-{secrets.token_hex(8)}"):
        words[session] = f"{owner.name}{secrets.token_hex(8)}"
        said = [{"role": "user", "content": f"The secret is word={words[session]}. Remember it."}]
        owner.ask("POST", "/v1/chat/completions", {"messages": said, "session_id": session})
        owner.ask("POST", f"/v1/memory/{session}/read", {"text": f"The same again: word={words[session]}."})
    hello = [{"role": "user", "content": "hello"}]
    owner.ask("POST", "/v1/chat/completions", {"messages": hello})  # an automatic session
    return words


def handmade(world: World, judge: Judge, number: int, seed: int, address: tuple[str, int]) -> None:
    """As many hand-made requests, all kinds in turn, eight at a time."""
    names = sorted(KINDS)
    turns = [(names[n % len(names)], Random(f"{seed}/{n}")) for n in range(number)]
    Random(seed).shuffle(turns)

    def one(turn: tuple[str, Random]) -> None:
        shot = KINDS[turn[0]](world, turn[1])
        judge.shot(shot, fire(shot, address))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, turns))


def generated(address: str, key: str, judge: Judge, number: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Schemathesis on the description that the server gives of itself; what it recorded is judged as everything is."""
    runs = []
    for turn, (name, arguments, with_key, share) in enumerate(SCHEMATHESIS):
        had = 0
        for again in range(20):  # it stops where it runs out of new cases; another seed has others
            if had >= number * share:
                break
            har = folder / f"{turn}-{again}.har"
            command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", *arguments]
            command += ["--checks", "all", "--continue-on-failure", "--suppress-health-check", "all", "--no-color"]
            command += ["--max-examples", str(max(10, number // 30)), "--seed", str(seed + 100 * turn + again)]
            command += ["--report", "har", "--report-har-path", str(har), "--report-preserve-bytes"]
            command += ["--output-sanitize", "false", "--generation-database", "none", "--no-shrink"]
            command += ["--header", f"Authorization: Bearer {key}"] if with_key else []
            done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            entries = json.loads(har.read_bytes())["log"]["entries"]
            had += len(entries)
            for entry in entries:
                _recorded(judge, f"schemathesis: {name}", entry)
            found = [
                line.split("❌")[1].strip() for line in done.stdout.split("Failures:")[-1].splitlines() if "❌" in line
            ]
            runs.append(
                {"run": name, "seed": seed + 100 * turn + again, "requests": len(entries), "its findings": found}
            )
    return runs


def _recorded(judge: Judge, kind: str, entry: dict[str, Any]) -> None:
    asked, given = entry["request"], entry["response"]
    body = asked.get("postData", {}).get("text", "")
    sent = asked["url"].encode() + b" " + repr(asked["headers"]).encode() + b" " + _bytes(body)
    headers = [(head["name"].lower(), head["value"]) for head in given["headers"]]
    content = given["content"]
    text = content.get("text", "")
    answer = base64.b64decode(text) if content.get("encoding") == "base64" else text.encode()
    judge.recorded(kind, asked["method"], sent, Answer(given["status"], headers, answer, True))


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return text.encode()


def counted(address: str) -> Counter[str]:
    """Requests by status, as the server counts them."""
    by_status: Counter[str] = Counter()
    with urlopen(f"{address}/metrics", timeout=60) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("memtrain_requests_total{"):
                by_status[line.split('status="')[1].split('"')[0]] += int(float(line.rsplit(" ", 1)[1]))
    return by_status


def strayed(store: Path, words: dict[tuple[str, str], str]) -> list[str]:
    """Secret words in rows of the store that are not their own session's."""
    found = []
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as database:
        for table in ("memtrain_sessions", "memtrain_turns"):
            for row in database.execute(f"SELECT owner, id, * FROM {table}"):
                text = repr(row[2:])
                found += [
                    f"{row[:2]} holds the word of {of}" for of, word in words.items() if word in text and of != row[:2]
                ]
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--generated", type=int, default=5000, help="requests by schemathesis, at least")
    parser.add_argument("--handmade", type=int, default=6000, help="hand-made requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/serving"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), options.generated, options.handmade, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "hostile.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key not in ("by_kind", "schemathesis")}, indent=1))
    sys.exit(0 if found["all_right"] else 1)


def run(folder: Path, number_generated: int, number_handmade: int, seed: int) -> dict[str, Any]:
    """Everything in one folder; the numbers."""
    store, upstream = folder / "sessions.db", Watched()
    owners = [Owner(name, store) for name in ("alice", "bob", "mallory", "gone")]
    alice, bob, mallory, gone = owners
    gone.revoke()
    arguments = ["--upstream", upstream.address, "--set", "serve.requests_per_minute=1000000000"]
    server = Server(arguments, store, folder / "server.log").start()
    for owner in owners:
        owner.address = server.address
    words = {(owner.name, session): word for owner in (alice, bob) for session, word in plant(owner).items()}
    before = {owner.name: owner.everything() for owner in (alice, bob)}
    hidden = [session for _, session in words if session.startswith("hidden-")]
    upstream.secrets = tuple(words.values())
    judge = Judge(
        [*words.values(), *hidden, *(owner.key for owner in owners)],
        [str(folder), str(Path(__file__).parents[2]), upstream.address],
    )
    host = server.address.removeprefix("http://")
    world = World(host, mallory.key, gone.key, SESSIONS)
    address = (host.split(":")[0], int(host.split(":")[1]))
    handmade(world, Judge((), ()), min(300, number_handmade), seed - 1, address)  # so that growth is growth
    resident, start, began = server.resident_mib(), counted(server.address), time.monotonic()

    handmade(world, judge, number_handmade, seed, address)
    middle = counted(server.address)
    runs = generated(server.address, mallory.key, judge, number_generated, seed, folder)

    seconds, end = time.monotonic() - began, counted(server.address)
    growth = server.resident_mib() - resident
    told = upstream.told
    after = {owner.name: owner.everything() for owner in (alice, bob)}
    again = plant(alice)  # turns still work
    alive = all(word in alice.everything()[session]["session"]["memory"] for session, word in again.items())
    server.stop()
    log = [line for line in server.log.read_text(errors="replace").splitlines()[1:] if line.strip()]
    unexpected = [
        line
        for line in log
        if not any(said in line for said in QUIET) and not line.startswith(("serving ", "sessions: "))
    ]
    by_kind = {
        kind: {"requests": judge.requests[kind], "statuses": dict(sorted(by.items()))}
        for kind, by in sorted(judge.statuses.items())
    }
    sent_generated = sum(run["requests"] for run in runs)
    found = {
        "requests": {"handmade": judge.requests.total() - sent_generated, "schemathesis": sent_generated,
        "all": judge.requests.total()},
        "counted_by_the_server": {
            "handmade": (middle - start).total() - 1,  # less our own look at the counters
            "schemathesis": (end - middle).total() - 1,
            "statuses": dict(sorted((end - start).items())),
            "refused_below_it_as_no_http": sum(NO_HTTP in line for line in log),
        },
        "status_500": sum(by["500"] for by in judge.statuses.values()),
        "problems": judge.problems,
        "words_planted": len(words),
        "words_in_other_sessions": strayed(store, words),
        "prompts_seen_by_the_model": upstream.prompts,
        "prompts_with_a_secret": told,
        "sessions_unchanged": before == after,
        "alive_at_the_end": alive,
        "resident_mib": {"before": round(resident, 1), "growth": round(growth, 1), "bound": GROWTH_MIB},
        "log_lines_unexpected": unexpected[:50],
        "slowest_answer_seconds": round(judge.slowest, 2),
        "seconds": round(seconds, 1),
        "seed": seed,
        "by_kind": by_kind,
        "schemathesis": runs,
    }  # fmt: skip
    wrong = (
        found["status_500"],
        judge.problems,
        found["words_in_other_sessions"],
        unexpected,
        not alive,
        before != after,
    )
    found["all_right"] = not any(wrong) and growth < GROWTH_MIB
    return found


if __name__ == "__main__":
    main()
