"""`memtrain serve` as a command: what it serves under which name, where it listens, how it stops."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from notebook_model import notebook_agent
from serve_here import serving, until
from test_serve_http import client, say

from memtrain.addresses import is_loopback
from memtrain.commands.serve import serve as command
from memtrain.errors import UserError
from memtrain.recipe import Recipe
from memtrain.serve import Upstream, resolve, upstream_agents
from memtrain.serving.owners import Owners
from memtrain.serving.store import Store

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from notebook_model import notebook_agent
from memtrain.serving.app import make_app
from memtrain.serving.run import run
from memtrain.serving.store import Store
from memtrain.settings import ServeSettings
store = Store(sys.argv[1])
app = make_app({"notebook": notebook_agent(delay=0.08)[0]}, store, ServeSettings())
run(app, "127.0.0.1", 0, lambda address: print(address, flush=True))
print("stopped", flush=True)
"""


def started(store: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_finishes_what_is_under_way(tmp_path: Path, how: signal.Signals) -> None:
    process, url = started(tmp_path / "s.db")
    try:
        ai = client(url, timeout=20)
        said: list[Any] = []
        body = {"session_id": "streamed"}
        stream = iter(say(ai, "FACT a=1 FACT b=2 FACT c=3", stream=True, extra_body=body))
        said.append(next(stream))
        whole: list[Any] = []
        other = threading.Thread(target=lambda: whole.append(say(ai, "FACT d=4", "whole")))
        other.start()
        until(lambda: "memtrain_requests_in_flight 3.0" in httpx2.get(f"{url}/metrics").text)
        process.send_signal(how)
        said += list(stream)
        other.join(20)
        assert said[-1].choices[0].finish_reason == "stop"
        assert whole[0].memtrain["memory"] == "FACT d=4"
        out, err = process.communicate(timeout=20)
        assert process.returncode == (0 if how == signal.SIGINT else -signal.SIGTERM)
        assert ("stopped" in out) == (how == signal.SIGINT)
        assert "Traceback" not in err
        store = Store(str(tmp_path / "s.db"))
        kept = {session.id: session.memory for session in store.sessions("local")}
        assert kept == {"streamed": "FACT a=1\nFACT b=2\nFACT c=3", "whole": "FACT d=4"}
        store.close()
    finally:
        process.kill()
        process.wait()


def test_killed_it_has_every_turn_that_it_acknowledged(tmp_path: Path) -> None:
    process, url = started(tmp_path / "s.db")
    acknowledged: dict[str, int] = {}
    try:

        def talk(name: str) -> None:
            ai = client(url, timeout=20)
            try:
                while True:
                    acknowledged[name] = say(ai, "FACT a=1", name, max_tokens=1).memtrain["turn"]
            except openai.OpenAIError:
                return

        threads = [threading.Thread(target=talk, args=(f"s{number}",)) for number in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: sum(acknowledged.values()) >= 12, 20)
        process.kill()
        for thread in threads:
            thread.join(20)
    finally:
        process.kill()
        process.wait()
    store = Store(str(tmp_path / "s.db"))
    for name, turn in acknowledged.items():
        kept = store.session("local", name)
        assert kept is not None
        assert kept.turn in (turn, turn + 1)  # the one more was kept, and the answer cut off
        assert len(store.turns("local", name)) == kept.turn
    store.close()


def test_what_others_reach_needs_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "127.8.9.1")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "192.168.1.5", "memory.example", "")] == [False] * 5
    store = str(tmp_path / "s.db")
    for host in ("0.0.0.0", "::", "memory.example"):
        with pytest.raises(UserError, match=r"no keys are given out.*memtrain keys add NAME"):
            command(host=host, store=store)  # before anything is loaded
    opened = Store(store)
    Owners(opened).add("ann")
    opened.close()
    with pytest.raises(UserError, match="neither a run"):
        command((str(tmp_path),), host="0.0.0.0", store=store)


def test_names_and_recipes_of_what_is_served(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    checkpoint = run / "checkpoints" / "grpo-000005"
    checkpoint.mkdir(parents=True)
    (checkpoint / "engine.json").write_text("{}")
    data = {"name": "mine", "memory": {"chunk_tokens": 77, "memory_tokens": 33}, "model": {"name": "base-model"}}
    (run / "recipe.json").write_text(json.dumps(data))
    model = tmp_path / "plain"
    model.mkdir()
    (model / "config.json").write_text("{}")

    [found] = resolve([str(run)], None, ["chat.context_tokens=999"])
    assert (found.name, found.recipe.model.name) == ("mine", str(run / "model"))
    assert (found.recipe.memory.chunk_tokens, found.recipe.chat.context_tokens) == (77, 999)
    [found] = resolve([str(run / "model")], None, [])
    assert (found.name, found.recipe.memory.chunk_tokens) == ("mine", 77)
    base, step = resolve([f"base={model}", str(checkpoint)], None, [])
    assert (base.name, base.recipe.model.name, base.recipe.memory.chunk_tokens) == ("base", str(model), 77)
    assert (step.name, step.recipe.model.name, step.checkpoint) == ("grpo-000005", "base-model", checkpoint)
    [found] = resolve([str(model)], None, [])
    assert (found.name, found.recipe.memory.style, found.recipe.memory.chunk_tokens) == ("plain", "full", 2000)
    [found] = resolve([str(run)], "paper-qwen3-4b", [])
    assert found.recipe.memory.chunk_tokens == 5000
    [found] = resolve([], None, [])
    assert found.name == found.recipe.model.name == "smollm2-135m"
    assert found.recipe == resolve(["smollm2-135m"], None, [])[0].recipe
    assert found.recipe.memory.chunk_tokens == 192
    (model / "memtrain.json").write_text(json.dumps({"memory": {"chunk_tokens": 88}, "model": {"lora_rank": 4}}))
    [found] = resolve([str(model)], None, [])
    assert (found.name, found.recipe.memory.chunk_tokens, found.recipe.model.lora_rank) == ("plain", 88, 0)
    with pytest.raises(UserError, match="two models are called mine"):
        resolve([str(run), str(run / "model")], None, [])
    with pytest.raises(UserError, match="not of the form NAME=PATH"):
        resolve(["=x"], None, [])
    (run / "model").rename(run / "gone")
    with pytest.raises(UserError, match=r"has no model yet.*serve one of its checkpoints"):
        resolve([str(run)], None, [])
    (run / "recipe.json").write_text("{nonsense")
    with pytest.raises(UserError, match=r"recipe.json cannot be read"):
        resolve([str(run)], None, [])


def test_an_upstream_is_asked_for_its_models(tmp_path: Path) -> None:
    recipe = Recipe()
    agent = notebook_agent()[0]
    with serving(agent, tmp_path / "a.db") as url:
        assert list(upstream_agents(Upstream(url), recipe)) == ["notebook"]
        assert list(upstream_agents(Upstream(url, "other"), recipe)) == ["other"]
    several = r"several models or none \(a, b\): choose one with --upstream-model"
    with serving({"a": agent, "b": agent}, tmp_path / "b.db") as url, pytest.raises(UserError, match=several):
        upstream_agents(Upstream(url), recipe)
    with pytest.raises(UserError, match="cannot be reached"):
        upstream_agents(Upstream(url), recipe)
    assert list(upstream_agents(Upstream(url, "later"), recipe)) == ["later"]
    with pytest.raises(UserError, match="--upstream-model says something of --upstream"):
        command(upstream_model="x")


def test_the_whole_command_in_front_of_an_upstream(tmp_path: Path) -> None:
    with serving(notebook_agent(context_tokens=4000)[0], tmp_path / "far.db") as far:
        code = "import sys; from memtrain.commands.serve import serve as command; "
        code += "command(upstream=sys.argv[1], port=0, store=sys.argv[2])"
        process = subprocess.Popen(
            [sys.executable, "-c", code, far, str(tmp_path / "near.db")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"serving notebook at (http://127\.0\.0\.1:\d+)/v1", line)
            assert found is not None, line
            ai = client(found[1])
            assert "hotel is Ritz" in say(ai, "FACT hotel=Ritz", "trip").choices[0].message.content
            assert say(ai, "hotel?", "trip").choices[0].message.content == "Ritz"
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
