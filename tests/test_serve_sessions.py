"""Sessions behind the server: hung-up clients, turns at once, owners, expiry, editing, export."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from notebook_model import notebook_agent
from serve_here import serving, until
from test_serve_http import LONG, client, say, text_of

from memtrain.serving.owners import Owners
from memtrain.serving.store import Store


def turns_of(url: str, session: str, **more: Any) -> int:
    answer = httpx2.get(f"{url}/v1/memory/{session}", **more)
    return answer.json()["turn"] if answer.status_code == 200 else 0


@pytest.mark.parametrize("how", ["streamed", "whole", "read"])
def test_a_client_that_hangs_up_stops_the_work_and_leaves_nothing(tmp_path: Path, how: str) -> None:
    agent, model = notebook_agent(delay=0.05 if how == "streamed" else 60)
    with serving(agent, tmp_path / "s.db") as url:
        if how == "streamed":
            stream = say(client(url), "FACT a=1 FACT b=2 FACT c=3", "x", stream=True)
            next(iter(stream))
            model.delay = 60
            stream.close()
        elif how == "whole":
            with pytest.raises(openai.APITimeoutError):
                say(client(url, timeout=1.5), "FACT a=1", "x")
        else:
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{url}/v1/memory/x/read", json={"text": LONG}, timeout=1.5)
        until(lambda: model.cancelled == 1, 3)
        assert model.asked == 1
        assert turns_of(url, "x") == 0
        model.delay = 0
        assert say(client(url), "FACT d=4", "x").memtrain["memory"] == "FACT d=4"  # and the session is free again
        assert model.asked == 3  # nothing went on behind anybody's back
        metrics = httpx2.get(f"{url}/metrics").text
        assert 'memtrain_turns_stopped_total{reason="hung up"} 1.0' in metrics


def test_a_client_that_hangs_up_in_line_never_begins(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=60)
    with serving(agent, tmp_path / "s.db") as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(say, client(url, timeout=4), "FACT other=1", "x")
        until(lambda: model.asked == 1)
        body = {"messages": [{"role": "user", "content": "FACT a=1"}], "session_id": "x"}
        for stream in (False, True):
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{url}/v1/chat/completions", json={**body, "stream": stream}, timeout=0.3)
        stopped = 'memtrain_turns_stopped_total{reason="hung up"} 2.0'
        until(lambda: stopped in httpx2.get(f"{url}/metrics").text, 2)
        assert (model.asked, first.done()) == (1, False)  # the first one is under way still, and holds the session
        with pytest.raises(openai.APITimeoutError):
            first.result()


def test_turns_of_one_session_wait_for_each_other_and_others_do_not(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=0.004)
    with serving(agent, tmp_path / "s.db") as url:
        ai = client(url)
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda n: say(ai, f"FACT k{n}={n}", "one", stream=False), range(8)))
        assert model.most_at_once == 1
        assert sorted(answer.memtrain["turn"] for answer in done) == list(range(1, 9))
        last = max(done, key=lambda answer: answer.memtrain["turn"])
        assert sorted(last.memtrain["memory"].split("\n")) == [f"FACT k{n}={n}" for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: say(ai, f"FACT k{n}={n}", f"other-{n}"), range(8)))
        assert model.most_at_once > 1
        for number in range(8):
            assert text_of(say(ai, f"k{number}? k{number + 1}?", f"other-{number}")) == f"{number} and unknown"


def test_owners_do_not_see_each_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s.db"))
    keys = {name: Owners(store).add(name) for name in ("ann", "bob")}
    store.close()
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        clients = {name: openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for name, key in keys.items()}
        heads = {name: {"Authorization": f"Bearer {key}"} for name, key in keys.items()}
        say(clients["ann"], "FACT secret=tulip", "diary")
        say(clients["bob"], "FACT secret=rose", "diary")
        assert text_of(say(clients["ann"], "secret?", "diary")) == "tulip"
        assert text_of(say(clients["bob"], "secret?", "diary")) == "rose"
        say(clients["ann"], "FACT pin=1234", "safe")
        http = httpx2.Client(base_url=f"{url}/v1", headers=heads["bob"])
        for method, path, body in [
            ("GET", "", None),
            ("GET", "/export", None),
            ("DELETE", "", None),
            ("POST", "/ask", {"question": "pin?"}),
        ]:
            theirs = http.request(method, f"/memory/safe{path}", json=body)
            nobodys = http.request(method, f"/memory/none{path}", json=body)
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.text.replace("safe", "none") == nobodys.text
        assert [row["session_id"] for row in http.get("/memory").json()["data"]] == ["diary"]
        assert http.delete("/memory").json() == {"deleted": 1}
        assert http.put("/memory/safe", json={"memory": "mine"}).json()["turn"] == 1  # a session of bob's own
        # Ann's conversation without an id, sent by Bob: he gets one of his own, which reads what he sent.
        auto = say(clients["ann"], "FACT word=plum")
        history = [
            {"role": "user", "content": "FACT word=plum"},
            {"role": "assistant", "content": text_of(auto)},
            {"role": "user", "content": "word?"},
        ]
        assert say(clients["bob"], history).memtrain["session_id"] != auto.memtrain["session_id"]
        assert turns_of(url, "safe", headers=heads["ann"]) == 1
        assert text_of(say(clients["ann"], "secret? pin?", "diary")) == "tulip and unknown"
        for key in (".", "nonsense", "mt-" + "x" * 43, keys["ann"][:-1], "\u00e9"):
            raw = httpx2.get(f"{url}/v1/memory", headers={"Authorization": f"Bearer {key}".encode("latin-1")})
            assert raw.status_code == 401
            assert raw.json()["error"]["code"] == "invalid_api_key"
            assert raw.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="nonsense", max_retries=0).models.list()
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        assert httpx2.get(f"{url}/health").status_code == 200
        schema = httpx2.get(f"{url}/openapi.json").json()
        assert schema["paths"]["/v1/memory"]["get"]["security"] == [{"HTTPBearer": []}]
        store = Store(str(tmp_path / "s.db"))
        assert Owners(store).revoke("ann")
        store.close()
        with pytest.raises(openai.AuthenticationError):
            say(clients["ann"], "secret?", "diary")


def test_sessions_are_listed_edited_exported_deleted(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db", memory_chars=2000) as url:
        http, ai = httpx2.Client(base_url=f"{url}/v1"), client(url)
        for name in ("c", "a", "b"):
            say(ai, f"FACT name={name}", name)
        page = http.get("/memory", params={"limit": 2}).json()
        assert ([row["session_id"] for row in page["data"]], page["has_more"]) == (["a", "b"], True)
        rest = http.get("/memory", params={"limit": 2, "after": "b"}).json()
        assert ([row["session_id"] for row in rest["data"]], rest["has_more"]) == (["c"], False)
        assert rest["data"][0]["memory_chars"] == len("FACT name=c")

        edited = http.put("/memory/a", json={"memory": "FACT name=anna", "turn": 1}).json()
        assert (edited["turn"], edited["memory"]) == (2, "FACT name=anna")
        assert http.put("/memory/a", json={"memory": "FACT name=x", "turn": 1}).status_code == 409
        assert http.put("/memory/a", json={"memory": "x" * 2001}).status_code == 413
        tokens = http.put("/memory/a", json={"memory": "x " * 600})
        assert (tokens.status_code, "this memory has 600 tokens" in tokens.text) == (413, True)
        new = http.put("/memory/new", json={"memory": "FACT name=\U0001f680 \u0000"}).json()
        assert (new["memory"], new["turn"], new["recent"]) == ("FACT name=\U0001f680 \ufffd", 1, [])
        say(ai, "name?", "a")
        export = http.get("/memory/a/export").json()
        assert [(turn["turn"], turn["memory"]) for turn in export["turns"]] == [
            (1, "FACT name=a"),
            (2, "FACT name=anna"),
            (3, "FACT name=anna"),
        ]
        assert export["session"]["turn"] == 3
        assert export["session"] == http.get("/memory/a").json()
        assert http.delete("/memory/a").json() == {"deleted": True}
        assert (
            http.get("/memory/a").status_code
            == http.delete("/memory/a").status_code
            == http.get("/memory/a/export").status_code
            == 404
        )
        assert http.delete("/memory").json() == {"deleted": 3}
        assert http.get("/memory").json()["data"] == []


def test_sessions_expire_when_told_to(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db", expire_days=1) as url:
        http, ai = httpx2.Client(base_url=f"{url}/v1"), client(url)
        say(ai, "FACT a=1", "x")
        first = http.get("/memory/x").json()
        assert first["expires"] == pytest.approx(first["updated"] + 86_400, abs=0.01)
        time.sleep(0.05)
        say(ai, "FACT b=1", "x")
        second = http.get("/memory/x").json()
        assert second["expires"] > first["expires"]  # every turn puts it off
        assert http.put("/memory/x", json={"memory": "FACT c=1"}).json()["expires"] > second["expires"]
        told = http.put("/memory/x", json={"expires_in": 1.2}).json()
        assert told["memory"] == "FACT c=1"
        say(ai, "FACT d=1", "x")
        assert http.get("/memory/x").json()["expires"] == told["expires"]  # but not what an owner has set
        assert http.put("/memory/y", json={"expires_in": None}).json()["expires"] is None
        say(ai, "FACT d=1", "y")
        assert http.get("/memory/y").json()["expires"] is None
        until(lambda: http.get("/memory/x").status_code == 404, 3)
        assert [row["session_id"] for row in http.get("/memory").json()["data"]] == ["y"]
        again = say(ai, "a? d?", "x")
        assert (text_of(again), again.memtrain["turn"]) == ("unknown and unknown", 1)


def test_an_edit_waits_for_the_turn_under_way(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=0.1)
    with serving(agent, tmp_path / "s.db") as url, ThreadPoolExecutor(1) as pool:
        turn = pool.submit(say, client(url), "FACT a=1", "x")
        until(lambda: model.asked == 1)
        edit = httpx2.put(f"{url}/v1/memory/x", json={"memory": "FACT a=2"}).json()
        assert (turn.result().memtrain["turn"], edit["turn"], edit["memory"]) == (1, 2, "FACT a=2")


def test_a_turn_that_another_process_has_overtaken_is_refused(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=0.2)
    with serving(agent, tmp_path / "s.db") as url, ThreadPoolExecutor(1) as pool:
        turn = pool.submit(say, client(url), "FACT a=1", "x")
        until(lambda: model.asked == 1)
        store = Store(str(tmp_path / "s.db"))
        store.put("local", "x", memory="FACT a=2", expires=..., expected_turn=None, now=time.time())
        store.close()
        with pytest.raises(openai.ConflictError, match="moved on"):
            turn.result()
        assert httpx2.get(f"{url}/v1/memory/x").json()["memory"] == "FACT a=2"


def test_a_stream_that_fails_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    agent, model = notebook_agent(delay=0.01)
    complete = model.complete

    async def breaks(messages: Any, params: Any, on_text: Any = None) -> Any:
        reply = await complete(messages, params, on_text)
        if on_text is None:
            raise RuntimeError("secret detail")
        return reply

    model.complete = breaks  # type: ignore[method-assign]
    with serving(agent, tmp_path / "s.db") as url:
        said: list[str] = []
        stream = say(client(url), "FACT a=1", "x", stream=True)
        with pytest.raises(openai.APIError, match="the server failed on this request") as caught:
            said.extend(chunk.choices[0].delta.content for chunk in stream)
        assert "".join(said) == "I know a is 1."
        assert "secret" not in json.dumps(caught.value.body)
        with pytest.raises(openai.InternalServerError, match="the server failed on this request") as whole:
            say(client(url), "FACT a=1", "x")
        assert "secret" not in whole.value.response.text
        assert turns_of(url, "x") == 0


def test_silence_is_filled_with_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memtrain.serving import streaming

    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.05)
    agent, _ = notebook_agent(delay=0.3)
    with serving(agent, tmp_path / "s.db") as url:
        body = {"messages": [{"role": "user", "content": "FACT a=1"}], "stream": True}
        text = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=20).text
        assert text.count(": ping\n\n") > 3
        assert text.endswith("data: [DONE]\n\n")
        chunks = list(say(client(url), "a?", "x", stream=True))  # the official client reads over them
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "unknown"


def test_many_streams_at_once_do_not_mix(tmp_path: Path) -> None:
    async def talk(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ai:

            async def one(number: int) -> None:
                for turn in range(3):
                    asked = [{"role": "user", "content": f"FACT mine={number}-{turn} FACT t{turn}={number}"}]
                    stream = await ai.chat.completions.create(
                        model="notebook", messages=asked, stream=True, metadata={"session_id": f"s{number}"}
                    )
                    memory = [c.memtrain["memory"] async for c in stream if getattr(c, "memtrain", None)][-1]
                    facts = dict(line.removeprefix("FACT ").split("=") for line in memory.split("\n"))
                    assert facts == {"mine": f"{number}-{turn}", **{f"t{t}": str(number) for t in range(turn + 1)}}

            await asyncio.gather(*(one(number) for number in range(40)))

    with serving(notebook_agent(delay=0.005)[0], tmp_path / "s.db") as url:
        asyncio.run(talk(url))
