"""The Tinker engine without a server: rows by hand, refusals, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.tinker.adapters import fetch
from memtrain.engines.tinker.client import NO_KEY, Connection, ServerError, address
from memtrain.engines.tinker.connect import choose_base, connect
from memtrain.engines.tinker.datums import TokenRow, completion_values, fill_up, policy_row, weighted_row
from memtrain.engines.tinker.losses import passes, token_advantages
from memtrain.engines.tinker.requests import Gatherer, Turns, stop_position
from memtrain.engines.tinker.update import refuse
from memtrain.errors import UserError
from memtrain.recipe import ModelSettings, TrainSettings
from memtrain.rl.loss import Normalisers
from memtrain.settings.tinker import TinkerSettings
from memtrain.types import Row

PLAIN = TinkerSettings()
LOSS = LossConfig(kl_coef=0.0)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_CREDENTIAL_CMD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_a_row_is_shifted_and_zero_over_the_prompt() -> None:
    found = policy_row(Row((1, 2, 3), (4, 5), (-1.0, -2.0), 1.0), (-1.5, -2.5), (0.5, 0.25))
    assert found == TokenRow((1, 2, 3, 4), (2, 3, 4, 5), (0.0, 0.0, -1.5, -2.5), (0.0, 0.0, 0.5, 0.25))
    assert weighted_row((1,), (2, 3), 0.5) == TokenRow((1, 2), (2, 3), weights=(0.5, 0.5))
    assert completion_values((9.0, 8.0, -1.0, -2.0), 2) == [-1.0, -2.0]


def test_requests_are_filled_up_with_rows_worth_nothing() -> None:
    rows = [weighted_row((1,), (2, 3), 1.0)] * 5
    filled = fill_up(rows, 4)
    assert len(filled) == 8
    assert all(set(row.weights) == {0.0} for row in filled[5:])
    assert fill_up(rows[:4], 4) == rows[:4]
    policy = fill_up([policy_row(Row((1,), (2,), (-1.0,), 1.0), (-1.0,), (1.0,))], 2)
    assert (set(policy[1].advantages), set(policy[1].logprobs), policy[1].weights) == ({0.0}, {0.0}, ())


def test_the_client_librarys_type_holds_the_row() -> None:
    pytest.importorskip("tinker")
    datum = policy_row(Row((1, 2), (3,), (-1.0,), 1.0), (-1.0,), (0.5,)).datum()
    assert datum.model_input.to_ints() == [1, 2]
    assert {name: list(tensor.tolist()) for name, tensor in datum.loss_fn_inputs.items()} == {
        "target_tokens": [2, 3],
        "logprobs": [0.0, -1.0],
        "advantages": [0.0, 0.5],
    }


def test_advantages_hold_weight_and_normaliser() -> None:
    row = Row((1,), (2, 3), (-1.0, -2.0), advantage=0.6, weight=0.5)
    other = Row((1,), (2, 3, 4), (-1.0,) * 3, advantage=-0.6)
    for normaliser, z in (("conversations", 2), ("tokens", 5)):
        loss = replace(LOSS, normaliser=normaliser)
        found = token_advantages(row, row.logprobs, None, None, loss, Normalisers.of([row, other], loss), PLAIN)
        assert found == pytest.approx([0.5 * 0.6 / z] * 2)


def test_the_kl_is_taken_off_the_advantage() -> None:
    row, z = Row((1,), (2, 3), (-1.0, -2.0), advantage=0.6), Normalisers(4.0, 1.0)
    loss, now, reference = replace(LOSS, kl_coef=0.1), (-1.0, -2.0), (-1.5, -1.0)
    k3 = token_advantages(row, now, now, reference, loss, z, PLAIN)
    # 1 - p_ref / p, by hand: 1 - e^-0.5 and 1 - e^1
    assert k3 == pytest.approx([(0.6 - 0.1 * 0.3934693) / 4, (0.6 + 0.1 * 1.7182818) / 4])
    k1 = token_advantages(row, now, now, reference, loss, z, TinkerSettings(kl_penalty="k1"))
    assert k1 == pytest.approx([(0.6 - 0.1 * 0.5) / 4, (0.6 + 0.1 * 1.0) / 4])
    # The server multiplies by the ratio, which is not 1 where the sampler's log-probs stand below it.
    old = (-1.2, -2.0)
    off = token_advantages(row, old, now, reference, loss, z, PLAIN)
    assert off[0] == pytest.approx((0.6 - 0.1 * 0.3934693 / math.exp(0.2)) / 4)


def test_a_sampler_that_is_not_the_policy_is_weighed_and_capped() -> None:
    row, z = Row((1,), (2, 3), (-1.0, -1.0), advantage=1.0), Normalisers(1.0, 1.0)
    loss = replace(LOSS, importance_sampling_cap=1.1)
    found = token_advantages(row, row.logprobs, (-1.3, -0.5), None, loss, z, PLAIN)
    assert found == pytest.approx([math.exp(-0.3), 1.1])


def test_both_kinds_of_rows_are_two_passes() -> None:
    rows = [
        Row((1, 2), (3,), (-1.0,), 1.0),
        Row((1,), (2, 3), (), 0.0, weight=2.0, loss="cross_entropy"),
        Row((1,), (2, 3, 4), (-1.0,) * 3, -1.0),
    ]
    loss = replace(LOSS, old_logprobs="sampler", cross_entropy_coef=0.5, clip_low=0.1, clip_high=0.3)
    z = Normalisers.of(rows, loss)
    policy, known = passes(rows, None, None, loss, z, PLAIN, "sum")
    assert policy[1:] == ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.3})
    assert [row.advantages for row in policy[0]] == [(0.0, 0.5), (-0.5,) * 3]
    assert known == ([TokenRow((1, 2), (2, 3), weights=(0.5, 0.5))], "cross_entropy", None)  # 0.5 * 2 / 2 tokens
    (only,) = passes(rows[1:2], None, None, loss, z, PLAIN, "sum")
    assert only == known
    plain = passes(rows, None, None, loss, z, TinkerSettings(loss="importance_sampling"), "sum")[0]
    assert plain[1:] == ("importance_sampling", None)


def test_means_over_sequences_are_undone() -> None:
    """A server that divides by positions and by sequences ends up with the sum."""
    rows = [Row((1, 2), (3,), (-1.0,), 1.0), Row((1,), (2, 3, 4), (), 0.0, loss="cross_entropy")]
    loss = replace(LOSS, old_logprobs="sampler")
    z = Normalisers.of(rows, loss)
    wanted = passes(rows, None, None, loss, z, PLAIN, "sum")
    found = passes(rows, None, None, loss, z, PLAIN, "sequence-mean")
    assert [name for _, name, _ in found] == ["ppo", "cispo"]
    assert found[1][2] == {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0}
    count = sum(len(made) for made, _, _ in found)
    for (summed, _, _), (averaged, _, _) in zip(wanted, found, strict=True):
        for left, right in zip(summed, averaged, strict=True):
            worth = left.advantages or left.weights
            assert [a / len(right.targets) / count for a in right.advantages] == pytest.approx(worth)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_the_api_cannot_do_is_refused() -> None:
    step = OptimiserConfig(grad_clip=1.0)
    refuse(LOSS, step, "sum", "http://there")
    with pytest.raises(UserError, match=r"'train\.grad_clip' is 1, .* set it to 0"):
        refuse(LOSS, step, "sequence-mean", "http://there")
    with pytest.raises(UserError, match=r"'train\.temperature' is 0\.7, .* set it to 1"):
        refuse(replace(LOSS, temperature=0.7), step, "sum", "http://there")


def test_adapters_only_and_one_alpha() -> None:
    with pytest.raises(UserError, match=r"'model\.lora_rank' is 0 .*engine = \"torch\""):
        connect("x", ModelSettings(), PLAIN, 0, TrainSettings())
    with pytest.raises(UserError, match=r"'model\.lora_alpha' is 16 .* 32; set it so"):
        connect("x", ModelSettings(lora_rank=8, lora_alpha=16), PLAIN, 0, TrainSettings())


def test_the_model_is_found_by_name() -> None:
    url = "http://there"
    assert choose_base("", "smollm2-135m", "/cache/smollm2", ["/models/smollm2-135m", "other"], url) == (
        "/models/smollm2-135m"
    )
    assert choose_base("other", "x", "x", ["a", "other"], url) == "other"
    assert choose_base("", "Qwen/Qwen3-4B", "Qwen/Qwen3-4B", ["Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Base"], url) == (
        "Qwen/Qwen3-4B"
    )
    with pytest.raises(UserError, match=r"serves a, b, nothing called 'x'; set key 'tinker\.base_model'"):
        choose_base("", "x", "/y", ["a", "b"], url)
    with pytest.raises(UserError, match=r"'tinker\.base_model' is 'c', but the server at http://there serves a, b"):
        choose_base("c", "x", "/y", ["a", "b"], url)


def test_addresses_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"set TINKER_BASE_URL or key 'tinker\.base_url'"):
        address(PLAIN)
    assert address(TinkerSettings(base_url="http://127.0.0.1:8000/")) == ("http://127.0.0.1:8000", NO_KEY)
    monkeypatch.setenv("TINKER_BASE_URL", "http://node7:8000")
    assert address(PLAIN) == ("http://node7:8000", NO_KEY)
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    with pytest.raises(UserError, match="TINKER_API_KEY would go to http://node7:8000 unencrypted") as refused:
        address(PLAIN)
    assert "secret" not in str(refused.value)
    assert address(TinkerSettings(base_url="https://node7")) == ("https://node7", None)
    assert address(TinkerSettings(base_url="http://localhost:1")) == ("http://localhost:1", None)
    monkeypatch.delenv("TINKER_API_KEY")
    with pytest.raises(UserError, match="https://node7 wants a key; set TINKER_API_KEY"):
        address(TinkerSettings(base_url="https://node7"))


def test_the_address_of_a_recipe_is_checked() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        TinkerSettings(base_url="node7:8000")


# ---- requests that wait together ------------------------------------------------------------------------------------


def test_what_is_asked_at_the_same_time_is_answered_together() -> None:
    batches = []

    async def answer(questions: list[int]) -> list[int]:
        batches.append(questions)
        if 13 in questions:
            raise UserError("no")
        return [2 * question for question in questions]

    async def run() -> None:
        waiting = Gatherer(answer)
        assert await asyncio.gather(*(waiting.ask(n) for n in range(5))) == [0, 2, 4, 6, 8]
        found = await asyncio.gather(waiting.ask(13), waiting.ask(1), return_exceptions=True)
        assert all(isinstance(one, UserError) for one in found)
        assert await waiting.ask(4) == 8

    tiny.run(run())
    assert batches == [[0, 1, 2, 3, 4], [13, 1], [4]]


def test_who_changes_the_weights_is_alone() -> None:
    seen: list[str] = []

    async def run() -> None:
        turns = Turns()

        async def sample(name: str) -> None:
            async with turns.together():
                seen.append(f"{name} in")
                await asyncio.sleep(0.01)
                seen.append(f"{name} out")

        async def update() -> None:
            async with turns.alone():
                seen.append("update in")
                await asyncio.sleep(0.01)
                seen.append("update out")

        first = [asyncio.create_task(sample("a")), asyncio.create_task(sample("b"))]
        await asyncio.sleep(0)
        await asyncio.gather(*first, update(), sample("c"))

    tiny.run(run())
    assert seen == ["a in", "b in", "a out", "b out", "update in", "update out", "c in", "c out"]


def test_stop_texts_end_with_the_token_that_completes_them() -> None:
    tokenizer = tiny.tokenizer()
    tokens = tokenizer.encode("a fact. ### Instruction and more", add_special_tokens=False)
    end = stop_position(tokens, ("### Inst",), tokenizer)
    assert end is not None
    assert "### Inst" in tokenizer.decode(tokens[:end])
    assert "### Inst" not in tokenizer.decode(tokens[: end - 1])
    assert stop_position(tokens, ("nowhere",), tokenizer) is None
    assert stop_position(tokens, (), tokenizer) is None


# ---- servers that misbehave -----------------------------------------------------------------------------------------


class Misbehaving(BaseHTTPRequestHandler):
    """Answers as the server's ``answers`` say, by the end of the path: (status, JSON)."""

    def do_POST(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.seen.append(self.path)
        if server.broken > 0:
            server.broken -= 1
            self.close_connection = True  # hang up in the middle: the client sees a lost connection
            return
        status, content = server.answers.get(self.path.rsplit("/api/v1/", 1)[-1], (404, {"detail": "Not Found"}))
        self._send(status, json.dumps(content).encode())

    def do_GET(self) -> None:
        server: Any = self.server
        content = server.answers.get(self.path.rsplit("/api/v1/", 1)[-1], (404, {"detail": "Not Found"}))
        self._send(content[0], content[1] if isinstance(content[1], bytes) else json.dumps(content[1]).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


GOOD = {
    "healthz": (200, {"status": "ok"}),
    "client/config": (200, {"pjwt_auth_enabled": False, "use_pyqwest_transport": False}),
    "create_session": (200, {"type": "create_session", "session_id": "session_1"}),
    "session_heartbeat": (200, {"type": "session_heartbeat"}),
    "get_server_capabilities": (200, {"supported_models": [{"model_name": "llama"}]}),
}


@contextlib.contextmanager
def a_server(port: int = 0, broken: int = 0, **answers: Any) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", port), Misbehaving)
    server.daemon_threads, server.seen, server.broken = True, [], broken
    server.answers = {**GOOD, **{name.replace("__", "/"): answer for name, answer in answers.items()}}
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def connection_to(url: str, **settings: Any) -> Connection:
    pytest.importorskip("tinker")
    return Connection(TinkerSettings(base_url=url, **settings))


def test_no_server_is_one_sentence() -> None:
    with a_server() as server:
        url = server.url
    with pytest.raises(UserError, match=rf"no Tinker server answers at {url}; start it, or set TINKER_BASE_URL"):
        connection_to(url).check()


def test_another_kind_of_server_is_told_apart() -> None:
    with a_server(client__config=(404, {"detail": "Not Found"})) as server:
        folder = str(tiny.model_folder("llama"))
        with pytest.raises(UserError, match=rf"what answers at {server.url} is no Tinker server"):
            connect(folder, ModelSettings(name=folder), TinkerSettings(base_url=server.url))


def test_a_refused_key_is_said() -> None:
    with a_server(create_session=(401, {"detail": "invalid key"})) as server:
        connection = connection_to(server.url)

        async def open_session() -> Any:
            return connection.service.holder

        with pytest.raises(UserError, match=r"refuses the key .*; check TINKER_API_KEY"):
            tiny.run(connection.ask(open_session))


def test_a_connection_that_breaks_is_tried_again() -> None:
    """Two requests are dropped in the middle; the third is answered."""
    with a_server(broken=2) as server:
        connection = connection_to(server.url)
        found = tiny.run(connection.ask(lambda: connection.service.get_server_capabilities_async()))
        assert [model.model_name for model in found.supported_models] == ["llama"]
        assert server.seen.count("/api/v1/client/config") == 3


def test_what_was_lost_is_told_from_what_is_refused() -> None:
    with a_server() as server:
        connection = connection_to(server.url)
        for text, lost in (
            ("Error retrieving result: Model model_1 not loaded (status 400)", True),
            ("Error retrieving result: Future not found with status 404", True),
            ("Promise expired/broken for request 7", True),
            ("Loss functions ['gspo'] are not supported by the JAX backend", False),
        ):

            async def fail(text: str = text) -> None:
                raise ValueError(text)

            with pytest.raises(ServerError) as found:
                tiny.run(connection.ask(fail))
            assert found.value.lost is lost, text

        async def another_version() -> None:
            raise AssertionError("promises always carry ids")

        with pytest.raises(ServerError, match=r"cannot read its answer: promises .* SkyRL 0\.4\.0 needs tinker 0\.25"):
            tiny.run(connection.ask(another_version))

        async def our_own_mistake() -> None:
            raise KeyError("x")

        with pytest.raises(KeyError):
            tiny.run(connection.ask(our_own_mistake))


def test_a_server_that_stays_away_is_waited_for_and_given_up() -> None:
    with a_server() as server:
        connection, url = connection_to(server.url, patience=1.0), server.url

    async def never() -> None:
        await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(
        UserError, match=rf"{url} has not answered for 1 seconds; start it again and go on with --resume"
    ):
        tiny.run(connection.ask(never))
    with pytest.raises(UserError, match="has not answered"):
        tiny.run(connection.wait())
    assert time.monotonic() - began < 8


def test_a_server_that_comes_back_is_gone_on_with() -> None:
    with a_server() as first:
        connection, port = connection_to(first.url, patience=20.0), first.server_address[1]

    def later() -> None:
        time.sleep(1.0)
        with a_server(port):
            time.sleep(3.0)

    thread = threading.Thread(target=later)
    thread.start()
    tiny.run(connection.wait())
    thread.join()


def test_one_request_may_not_take_for_ever() -> None:
    with a_server() as server:
        connection = connection_to(server.url, patience=1.0, request_timeout=0.5)

        async def never() -> None:
            await asyncio.sleep(60)

        with pytest.raises(UserError, match=r"worked on one request for 0\.5 seconds; .*tinker\.request_timeout"):
            tiny.run(connection.ask(never))


# ---- adapters -------------------------------------------------------------------------------------------------------


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_an_adapter_is_fetched_and_named_after_its_base(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    weights = save({name: torch.ones(2, 3)})
    content = archive(adapter_model__safetensors=weights, adapter_config__json=b'{"r": 2}', evil=b"x")
    with a_server(adapter=(200, content), empty=(200, archive(other=b"x")), broken_file=(200, b"no archive")) as server:
        fetch(f"{server.url}/api/v1/adapter", tmp_path, "/models/llama")
        assert {path.name for path in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["target_modules"] == ["q_proj"]
        assert config["base_model_name_or_path"] == "/models/llama"
        for bad in ("empty", "broken_file", "missing"):
            with pytest.raises(UserError, match="the adapter cannot be fetched from the Tinker server"):
                fetch(f"{server.url}/api/v1/{bad}", tmp_path, "x")
    with pytest.raises(UserError, match="no http address"):
        fetch("file:///etc/passwd", tmp_path, "x")


def test_a_checkpoint_of_another_engine_is_refused(tmp_path: Path) -> None:
    with a_server() as server:
        folder = str(tiny.model_folder("llama"))
        engine = connect(folder, ModelSettings(name=folder), TinkerSettings(base_url=server.url))
        with pytest.raises(UserError, match=r"has no tinker\.json of the Tinker engine"):
            tiny.run(engine.load(tmp_path))
        seeds = {"text": "0", "asked": {}}
        content = {"base_model": "other", "rank": 8, "state": "tinker://a/weights/b", "reference": None, "seeds": seeds}
        (tmp_path / "tinker.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"an adapter of rank 8 of other, not rank 1 of llama"):
            tiny.run(engine.load(tmp_path))
        engine.close()
