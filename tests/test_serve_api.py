"""What is told of the server: metrics, the description of the API, and a store that fails."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from notebook_model import notebook_agent
from prometheus_client.parser import text_string_to_metric_families
from serve_here import listening, serving
from test_serve_http import LONG, client, say
from test_serve_limits import ASKED, CHAT, refused


def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        ai = client(url)
        whole = say(ai, "FACT a=1", "x")
        list(say(ai, "a?", "x", stream=True))
        httpx2.post(f"{url}/v1/memory/y/read", json={"text": LONG})
        httpx2.post(f"{url}/v1/memory/y/ask", json={"question": "a?"})
        for path in ("/nowhere/17", "/nowhere/18", "/v1/memory/none"):
            httpx2.get(f"{url}{path}")
        answer = httpx2.get(f"{url}/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}

        def value(family: str, **labels: str) -> float:
            return sum(
                sample.value
                for sample in families[family].samples
                if sample.name in (family, f"{family}_total", f"{family}_count")
                and labels.items() <= sample.labels.items()
            )

        assert value("memtrain_requests", route=CHAT, method="POST", status="200") == 2
        assert value("memtrain_requests", route="/v1/memory/{session}", status="404") == 1
        assert value("memtrain_requests", route="other", status="404") == 2  # no label of a stranger's making
        assert value("memtrain_request_seconds", route=CHAT) == 2
        assert [value("memtrain_turns", kind=kind) for kind in ("chat", "read", "ask")] == [2, 1, 1]
        assert value("memtrain_chunks_read") >= 8
        first = whole.memtrain["calls"][0]
        assert value("memtrain_tokens", call="reply", direction="prompt") > first["prompt_tokens"]
        assert value("memtrain_sessions") == 2
        assert value("memtrain_first_text_seconds") == 2
        assert value("memtrain_requests_in_flight") == 1  # this one
        assert value("process_resident_memory_bytes") > 1e7
        with serving(notebook_agent()[0], tmp_path / "t.db") as other:  # a registry of its own
            assert "memtrain_turns_total{" not in httpx2.get(f"{other}/metrics").text


def test_the_description_of_the_api(tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    with serving(notebook_agent()[0], tmp_path / "s.db") as url:
        raw = httpx2.get(f"{url}/openapi.json").json()
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        schema.config.update(base_url=url)
        operations = {f"{method.upper()} {path}" for path, methods in raw["paths"].items() for method in methods}
        assert operations == {
            "POST /v1/chat/completions",
            "GET /v1/models",
            "GET /v1/models/{model}",
            "GET /v1/memory",
            "DELETE /v1/memory",
            *(f"{method} /v1/memory/{{session}}" for method in ("GET", "PUT", "DELETE")),
            "GET /v1/memory/{session}/export",
            "POST /v1/memory/{session}/read",
            "POST /v1/memory/{session}/ask",
            "GET /health",
            "GET /metrics",
        }
        for path, methods in raw["paths"].items():
            for operation in methods.values():
                answers = operation["responses"]
                assert set(answers) == {"200", "4XX", "5XX"}
                assert answers["4XX"]["content"]["application/json"]["schema"] == {
                    "$ref": "#/components/schemas/ErrorBody"
                }
                if path != "/metrics":
                    assert answers["200"]["content"]["application/json"]["schema"]
                if path.startswith("/v1"):
                    assert operation["security"] == [{"HTTPBearer": []}, {}]  # none is needed while there are no keys
        # What is answered is what is described.
        say(client(url), "FACT a=1", "x")
        checked = 0
        for body, path, method in [
            (ASKED, CHAT, "POST"),
            ({"messages": []}, CHAT, "POST"),
            (None, "/v1/memory", "GET"),
            (None, "/health", "GET"),
            (None, "/v1/models", "GET"),
        ]:
            case = (
                schema[path][method].Case(body=body, media_type="application/json")
                if body
                else schema[path][method].Case()
            )
            case.validate_response(case.call())
            checked += 1
        for tail, method in [("", "GET"), ("/export", "GET"), ("/none", "GET")]:
            template = "/v1/memory/{session}" + tail.replace("/none", "")
            case = schema[template][method].Case(path_parameters={"session": "none" if tail == "/none" else "x"})
            case.validate_response(case.call())
            checked += 1
        assert checked == 8


def test_a_broken_store_is_told_in_one_sentence(tmp_path: Path) -> None:

    from memtrain.serving.app import make_app
    from memtrain.serving.store import Store
    from memtrain.settings import ServeSettings

    store = Store(str(tmp_path / "s.db"))
    with listening(make_app({"m": notebook_agent()[0]}, store, ServeSettings())) as url:
        assert httpx2.post(f"{url}{CHAT}", json=ASKED).status_code == 200
        with store.database.write() as connection:
            connection.exec_driver_sql("DROP TABLE memtrain_turns")
        answer = httpx2.post(f"{url}{CHAT}", json=ASKED)
        refused(answer, 503, "the store of the sessions does not answer")
        assert str(tmp_path) not in answer.text
        assert answer.headers["retry-after"]
    store.close()
