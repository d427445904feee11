"""Hostile requests against a server that listens: nothing fails, nothing leaks, nobody is kept out by somebody else.

The kinds of requests and what is asked of every answer are those of ``benchmarks/serving/hostile.py``, which the slow
test runs whole: 10,000 of them against a process of its own.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx2")
import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notebook_model import CHAT as CHAT_SETTINGS
from notebook_model import MEMORY, notebook_agent
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from serve_here import serving, until

from memtrain.memory.chat import ChatAgent
from memtrain.serving.contract import ChatRequest
from memtrain.serving.owners import Owners
from memtrain.serving.store import Store
from memtrain.serving.upstream import UpstreamModel, open_client

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "serving"))
import hostile_bait  # noqa: F401  (registers its kinds, as the next one does)
import hostile_doors
from hostile_cases import CHAT, KINDS, World, ask
from hostile_judge import Judge
from hostile_wire import Answer, Reply, Shot, as_json, fire, raw_request

SCRIPT = Path(hostile_doors.__file__).with_name("hostile.py")

EACH = 12
"""Requests of each kind."""


@dataclass
class Place:
    """A server with two owners: one has secrets, the other attacks."""

    url: str
    keys: dict[str, str]
    words: dict[str, str]
    judge: Judge

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    @property
    def world(self) -> World:
        return World(self.url.removeprefix("http://"), self.keys["mallory"], self.keys["gone"], tuple(self.words))

    def as_owner(self, name: str) -> Any:
        return httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.keys[name]}"}, timeout=30)

    def secret_sessions(self) -> dict[str, Any]:
        with self.as_owner("bob") as bob:
            names = [row["session_id"] for row in bob.get("/v1/memory").json()["data"]]
            return {name: bob.get(f"/v1/memory/{name}/export").json() for name in names}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    store = tmp_path_factory.mktemp("hostile") / "s.db"
    opened = Store(str(store))
    owners = Owners(opened)
    keys = {name: owners.add(name) for name in ("bob", "mallory", "gone")}
    owners.revoke("gone")
    opened.close()
    words = {name: f"secretword{number}x" for number, name in enumerate(("trip", "diary", "mine-1"))}
    with serving(notebook_agent()[0], store, requests_per_minute=10**9) as url:
        judge = Judge([*words.values(), "hidden-trip", *keys.values()], [str(store.parent), str(SCRIPT.parents[2])])
        made = Place(url, keys, words, judge)
        with made.as_owner("bob") as bob:
            for session, word in [*words.items(), ("hidden-trip", words["trip"])]:
                said = [{"role": "user", "content": f"FACT word={word}"}]
                assert bob.post(CHAT, json={"messages": said, "session_id": session}).status_code == 200
        yield made


@pytest.fixture(autouse=True)
def nothing_wrong(place: Place) -> Iterator[None]:
    """Before and after: the owner's sessions are the same, and every answer in between was as it must be."""
    before = place.secret_sessions()
    assert all(word in json.dumps(before[session]) for session, word in place.words.items())
    place.judge.problems.clear()
    yield
    assert place.judge.problems == []
    assert place.secret_sessions() == before


def metrics(url: str) -> dict[tuple[str, str], float]:
    """Sums of counters and gauges by name and status."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(httpx2.get(f"{url}/metrics").text):
        for sample in family.samples:
            at = (sample.name, sample.labels.get("status", ""))
            found[at] = found.get(at, 0) + sample.value
    return found


def test_hand_made_requests_of_every_kind(place: Place) -> None:
    before = metrics(place.url)

    def one(turn: tuple[str, int]) -> None:
        name, number = turn
        shot = KINDS[name](place.world, Random(f"test/{name}/{number}"))
        place.judge.shot(shot, fire(shot, place.address))

    turns = [(name, number) for number in range(EACH) for name in sorted(KINDS)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, turns))
    after = metrics(place.url)
    by_status = {
        status: n - before.get((name, status), 0)
        for (name, status), n in after.items()
        if name == "memtrain_requests_total"
    }
    assert sum(by_status.values()) > 0.8 * len(turns)  # the others broke HTTP itself, or hung up before they had asked
    assert "500" not in by_status
    assert {"200", "400", "401", "403", "404", "405", "413", "415"} <= set(by_status)
    assert set(place.judge.requests) == set(KINDS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "model",
    "messages",
    "stream",
    "max_tokens",
    "temperature",
    "stop",
    "session_id",
    "metadata",
    "memory",
    "turn",
    "expires_in",
    "text",
    "question",
    "n",
)
ROUTES = st.sampled_from(
    [
        ("POST", CHAT),
        ("PUT", "/v1/memory/mine-1"),
        ("POST", "/v1/memory/mine-1/read"),
        ("POST", "/v1/memory/mine-1/ask"),
    ]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant"]) | JSON_VALUES, "content": JSON_VALUES}
    ),
    max_size=3,
)
BODIES = st.one_of(
    JSON_VALUES,
    st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES),
    st.fixed_dictionaries({"messages": MESSAGES, "text": JSON_VALUES, "question": JSON_VALUES, "memory": JSON_VALUES}),
).map(as_json) | st.binary(max_size=60)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(route=ROUTES, body=BODIES)
def test_any_body_at_all(place: Place, route: tuple[str, str], body: bytes) -> None:
    shot = ask(place.world, "any body", *route, body)
    place.judge.shot(shot, fire(shot, place.address))
    assert place.judge.problems == []


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(target=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40), value=st.text(max_size=40))
def test_any_path_and_any_session_header(place: Place, target: str, value: str) -> None:
    header = value.encode("utf-8", "surrogatepass").translate(None, b"\0\r\n")
    shot = ask(
        place.world, "any path", "GET", f"/v1/memory/{target}", None, [("X-Session-Id", header)], valid_http=False
    )
    place.judge.shot(shot, fire(shot, place.address))
    assert place.judge.problems == []


def test_what_schemathesis_makes_of_the_description(place: Place) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.generation import GenerationMode

    schema = schemathesis.openapi.from_url(f"{place.url}/openapi.json")
    schema.config.update(base_url=place.url)
    with place.as_owner("mallory") as mallory:
        key = dict(mallory.headers)["authorization"]
    sent = 0
    for made in schema.get_all_operations():
        operation = made.ok()
        for mode in GenerationMode:

            @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def checked(case: Any) -> None:
                nonlocal sent
                answer = case.call(headers={"Authorization": key})
                sent += 1
                headers = [(name.lower(), value) for name, value in answer.headers.items() for value in value]
                asked = repr(answer.request.url).encode() + repr(answer.request.body).encode()
                place.judge.recorded(
                    "schemathesis", case.method, asked, Answer(answer.status_code, headers, answer.content, True)
                )
                assert place.judge.problems == []

            try:
                checked()
            except Exception as error:
                if (
                    "negate" not in str(error) and "Unsatisfiable" not in type(error).__name__
                ):  # nothing is wrong for it
                    raise
    assert sent > 100


def test_the_judge_sees_what_is_wrong() -> None:
    right = b'{"error": {"message": "no", "type": "t", "param": null, "code": null}}'
    kind = ("content-type", "application/json")
    asked = b"GET /v1/memory/x"
    for answer, words in [
        (Answer(404, [kind], right, True), ""),
        (Answer(500, [kind], right, True), "status 500"),
        (Answer(404, [kind], b"no", True), "OpenAI's shape"),
        (Answer(404, [kind], right.replace(b"no", b"bobs-word"), True), "the secret"),
        (Answer(404, [kind], right.replace(b"no", b"in app.py"), True), "'.py' is in the answer"),
        (Answer(404, [kind, ("x-session-id", "bobs-word")], right, True), "the secret"),
        (Answer(404, [kind, ("set-cookie", "a")], right, True), "was not to come"),
        (Answer(200, [kind], b'{"a": NaN}', True), "not JSON"),
        (Answer(200, [("content-type", "text/event-stream")], b"data: {}\n\nevent: x\n\n", True), "a line of its own"),
        (Answer(200, [("content-type", "text/event-stream")], b"data: x\n\n", True), "not JSON"),
    ]:
        judge = Judge(["bobs-word"], ["/inside"])
        judge.recorded("x", "GET", asked, answer)
        assert len(judge.problems) == bool(words), (answer, judge.problems)
        assert words in "".join(judge.problems)
    judge = Judge([], [])
    judge.shot(Shot("x", (asked,)), Reply())
    assert "0 of 1 answered" in judge.problems[0]


def test_a_million_wrong_items_cost_no_more_than_one() -> None:
    for body in (
        {"messages": [{"role": "user", "content": [[0]] * 10**6}]},
        {"messages": [0] * 9000},
        {"messages": [{"role": "user", "content": "a"}], "stop": [0] * 10**6},
        {"messages": [{"role": "user", "content": "a"}], "modalities": [0] * 10**6},
    ):
        with pytest.raises(ValidationError) as raised:
            ChatRequest.model_validate(body)
        assert raised.value.error_count() <= 3


def test_one_owner_does_not_take_every_place(tmp_path: Path) -> None:
    opened = Store(str(tmp_path / "s.db"))
    keys = {name: {"Authorization": f"Bearer {Owners(opened).add(name)}"} for name in ("greedy", "other")}
    opened.close()
    agent, model = notebook_agent(delay=0.3)
    with serving(agent, tmp_path / "s.db", concurrent_requests=4) as url, ThreadPoolExecutor(3) as pool:
        body = {"messages": [{"role": "user", "content": "FACT a=1"}]}
        taken = [pool.submit(httpx2.post, url + CHAT, json=body, headers=keys["greedy"], timeout=30) for _ in range(3)]
        until(lambda: model.asked >= 3)
        refused = httpx2.get(f"{url}/v1/memory", headers=keys["greedy"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
        assert httpx2.get(f"{url}/v1/memory", headers=keys["other"]).status_code == 200
        assert [one.result().status_code for one in taken] == [200] * 3
        assert httpx2.get(f"{url}/v1/memory", headers=keys["greedy"]).status_code == 200


def test_a_client_that_takes_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memtrain.serving.limits.SEND_SECONDS", 0.3)
    with serving(notebook_agent()[0], tmp_path / "s.db", memory_chars=2**21, requests_per_minute=10**6) as url:
        for _ in range(8):
            assert httpx2.put(f"{url}/v1/memory/big", json={"memory": "x" * 2**21}).status_code == 200
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect((host, int(port)))
            # Two in a row: the first answer fills what the connection holds, the second finds it full.
            sent = raw_request("GET", "/v1/memory/big/export", f"{host}:{port}", [("Connection", "keep-alive")])
            wire.sendall(sent + sent)
            under_way = ("memtrain_requests_in_flight", "")
            until(lambda: metrics(url)[under_way] == 2)
            until(lambda: metrics(url)[under_way] == 1)  # the look at the metrics itself


def test_two_answers_on_one_connection_have_an_owner_each(place: Place) -> None:
    host = place.url.removeprefix("http://")

    def get(name: str) -> bytes:
        key = [("Authorization", f"Bearer {place.keys[name]}")] if name else []
        return raw_request("GET", "/v1/memory/trip", host, [*key, ("Connection", "keep-alive")])

    reply = fire(Shot("pipelined", (get("bob") + get("") + get("mallory") + get("bob"),), requests=4), place.address)
    assert [answer.status for answer in reply.answers] == [200, 401, 404, 200]
    assert [place.words["trip"].encode() in answer.body for answer in reply.answers] == [True, False, False, True]


@pytest.mark.parametrize("stream", [False, True])
def test_halves_of_characters_from_the_model(tmp_path: Path, stream: bool) -> None:
    pytest.importorskip("openai")
    from test_serve_upstream import upstream

    with upstream() as (behind, far):
        behind.pieces = ["a\ud83d", "\ude00b", "\ude00", "c\ud83d"]
        model = UpstreamModel(open_client(f"{far}/v1"), "m")
        with serving(ChatAgent(model, MEMORY, CHAT_SETTINGS), tmp_path / "s.db") as url:
            asked = {"messages": [{"role": "user", "content": "hello"}], "session_id": "x", "stream": stream}
            answer = httpx2.post(url + CHAT, json=asked)
            memory = httpx2.get(f"{url}/v1/memory/x").json()["memory"]
    assert answer.status_code == 200
    assert "internal" not in answer.text
    assert memory == "a\U0001f600b\ufffdc\ufffd"


@pytest.mark.slow
def test_ten_thousand_against_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    done = subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "hostile.json").read_text())
    counted = found["counted_by_the_server"]
    assert found["requests"]["all"] >= 10_000
    assert counted["handmade"] >= 5000
    assert counted["schemathesis"] >= 5000
    assert "500" not in counted["statuses"]
    assert found["all_right"]
