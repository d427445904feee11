"""Requests to vLLM and its answers, without vLLM: recorded answers of a real server (0.32 on a CPU), and its errors."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtrain.engines.seeds import Seeds
from memtrain.engines.vllm.requests import (
    completion,
    completion_of_answer,
    sampling_options,
    top_two_gap,
)
from memtrain.engines.vllm.server import ServerSampler
from memtrain.errors import UserError
from memtrain.settings import SamplerSettings
from memtrain.types import SamplingParams

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "test_vllm_answers.json").read_text(encoding="utf-8"))
"""Answers of ``python -m vllm.entrypoints.openai.api_server`` on SmolLM2-135M: name -> status and body."""
END = 2
"""SmolLM2's end token."""


def body(name: str) -> Any:
    return RECORDED[name]["body"]


# ---- answers --------------------------------------------------------------------------------------------------------


def test_an_answer_becomes_a_completion() -> None:
    got = completion_of_answer(body("plain"), "vLLM")
    assert got.token_ids == (1876, 28, 2531, 28, 2976, 28, 4962, 28)
    assert got.logprobs[:2] == pytest.approx((-0.3460637, -0.3721370), abs=1e-6)
    assert got.stop_reason == "length"


def test_a_stop_text_stays_in_the_token_ids_and_ends_them() -> None:
    got = completion_of_answer(body("stop"), "vLLM")
    assert body("stop")["choices"][0]["text"].endswith("five")
    assert got.token_ids == (1876, 28, 2531)  # " four" "," " five"
    assert len(got.logprobs) == 3
    assert got.stop_reason == "stop"


def test_an_end_token_is_kept_unless_it_is_ignored() -> None:
    ended, ignored = completion_of_answer(body("eos"), "vLLM"), completion_of_answer(body("ignore"), "vLLM")
    assert ended.token_ids[-1] == END
    assert ended.stop_reason == "stop"
    assert len(ignored.token_ids) == 20
    assert ignored.stop_reason == "length"


def test_halving_the_temperature_doubles_the_gap_where_log_probs_are_those_of_the_sampling_distribution() -> None:
    assert top_two_gap(body("half")) == pytest.approx(2 * top_two_gap(body("one")), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"token_ids": None}, "0.32 or newer"),
        ({"logprobs": None}, "0.32 or newer"),
        ({"finish_reason": "abort"}, "abort"),
        ({"logprobs": {"token_logprobs": [-1.0, None, *[-1.0] * 6]}}, "7 log-probs for 8 tokens"),
    ],
)
def test_an_answer_that_cannot_be_trusted_is_refused(change: dict[str, Any], says: str) -> None:
    answer = json.loads(json.dumps(body("plain")))
    answer["choices"][0].update(change)
    with pytest.raises(UserError, match=says):
        completion_of_answer(answer, "vLLM")


def test_log_probs_past_the_last_token_are_dropped() -> None:
    assert completion((1, 2), (-1.0, -2.0, -3.0), "stop", "vLLM").logprobs == (-1.0, -2.0)


def test_options_say_everything_a_server_might_fill_in() -> None:
    got = sampling_options(SamplingParams(7, 0.5, 0.9, stop=("X",)), 11, [2, 0])
    assert (got["max_tokens"], got["temperature"], got["top_p"], got["seed"]) == (7, 0.5, 0.9, 11)
    assert got["stop"] == ["X"]
    assert got["stop_token_ids"] == [0, 2]
    assert got["include_stop_str_in_output"]
    assert not got["skip_special_tokens"]
    assert (got["top_k"], got["min_p"], got["repetition_penalty"]) == (0, 0.0, 1.0)
    assert sampling_options(SamplingParams(7, ignore_eos=True), 0, [2])["stop_token_ids"] == []
    assert json.loads(json.dumps(got)) == got


# ---- seeds ----------------------------------------------------------------------------------------------------------

PROMPTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=12)


@given(prompts=PROMPTS, order=st.randoms())
def test_seeds_do_not_depend_on_who_asks_first(prompts: list[list[int]], order: random.Random) -> None:
    def by_prompt(asked: list[list[int]], text: str = "a") -> dict[tuple[int, ...], list[int]]:
        seeds = Seeds(text)
        found: dict[tuple[int, ...], list[int]] = {}
        for prompt in asked:
            found.setdefault(tuple(prompt), []).append(seeds.draw(prompt))
        return found

    shuffled = list(prompts)
    order.shuffle(shuffled)
    drawn = by_prompt(prompts)
    assert by_prompt(shuffled) == drawn
    flat = [seed for seeds in drawn.values() for seed in seeds]
    assert len(set(flat)) == len(prompts)
    assert all(0 <= seed < 2**63 for seed in flat)
    assert not set(flat) & {seed for seeds in by_prompt(prompts, "b").values() for seed in seeds}


@given(prompts=PROMPTS, cut=st.integers(0, 12))
def test_seeds_go_on_where_they_were_saved(prompts: list[list[int]], cut: int) -> None:
    whole, part = Seeds("s"), Seeds("s")
    wanted = [whole.draw(prompt) for prompt in prompts]
    got = [part.draw(prompt) for prompt in prompts[:cut]]
    part = Seeds.restore(json.loads(json.dumps(part.state())))
    assert got + [part.draw(prompt) for prompt in prompts[cut:]] == wanted


# ---- a server's errors ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replay(*answers: tuple[int, Any], models: Any = None) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A server that gives the answers to POST one after another (the last for good) and notes what it was asked;
    ``models`` are its answers to GET, by default the recorded list of models."""
    queue, asked = list(answers), []
    listed = models or [(200, body("models"))]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(*(listed.pop(0) if len(listed) > 1 else listed[0]))

        def do_POST(self) -> None:
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, data))
            self.answer(*(queue.pop(0) if len(queue) > 1 else queue[0]))

        def answer(self, status: int, content: Any) -> None:
            if status == 0:  # never answers
                time.sleep(0.5)
                return
            raw = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def at(url: str, pauses: tuple[float, ...] = (0.01, 0.01)) -> ServerSampler:
    return ServerSampler(SamplerSettings(kind="vllm-server", url=url), [END], pauses)


def draw(sampler: ServerSampler, params: SamplingParams | None = None) -> Any:
    return asyncio.run(sampler.generate((9825, 42), params or SamplingParams(8), 5))


def recorded(name: str) -> tuple[int, Any]:
    return RECORDED[name]["status"], body(name)


def test_a_request_says_what_was_recorded_with() -> None:
    with replay(recorded("plain")) as (url, asked):
        sampler = at(url)
        assert sampler.context_tokens == 2048
        assert draw(sampler) == completion_of_answer(body("plain"), "")
    path, data = asked[0]
    assert path == "/v1/completions"
    assert data["model"] == "smollm2"
    assert data["prompt"] == [9825, 42]
    assert data["return_token_ids"] is True
    assert data["logprobs"] == 0


def test_a_dead_server_is_tried_again_and_then_named_in_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    began = time.perf_counter()
    with pytest.raises(UserError) as error:
        at(url, (0.05, 0.1))
    assert time.perf_counter() - began >= 0.15
    text = str(error.value)
    assert url in text
    assert "sampler.url" in text
    assert "3 tries" in text
    assert "\n" not in text


def test_a_busy_server_is_asked_again() -> None:
    starting = [(503, "starting"), recorded("models")]
    with replay((429, "slow down"), (503, ""), recorded("plain"), models=starting) as (url, asked):
        sampler = at(url)
        assert sampler.model == "smollm2"
        assert draw(sampler) == completion_of_answer(body("plain"), "")
        assert len(asked) == 3
        assert asked[0] == asked[2]


@pytest.mark.parametrize("answer", [(404, "<html>"), (401, {"error": {"message": "Unauthorized"}})])
def test_what_is_no_vllm_server_is_told_so(answer: tuple[int, Any]) -> None:
    with replay(models=[answer]) as (url, _), pytest.raises(UserError, match="does not answer as vLLM does"):
        at(url)


@pytest.mark.parametrize("name", ["wrong_model", "too_long"])
def test_the_servers_own_words_are_passed_on(name: str) -> None:
    with replay(recorded(name)) as (url, _):
        sampler = at(url)
        with pytest.raises(UserError) as error:
            draw(sampler)
    assert body(name)["error"]["message"] in str(error.value)


class Learner:
    """Stands where only the folder of an adapter matters."""

    class loaded:
        lora = True

    async def export(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")


def test_every_adapter_has_a_name_of_its_own_and_the_old_one_goes(tmp_path: Path) -> None:
    with replay((200, "Success")) as (url, asked):
        settings = SamplerSettings(kind="vllm-server", url=url, adapter_folder=str(tmp_path))
        sampler = ServerSampler(settings, [END], ())
        for _ in range(2):
            asyncio.run(sampler.take(Learner()))
        (left,) = tmp_path.iterdir()
        sampler.close()
    paths = [path.rsplit("/", 1)[1] for path, _ in asked]
    names = [data["lora_name"] for _, data in asked]
    assert paths == ["load_lora_adapter", "load_lora_adapter", "unload_lora_adapter", "unload_lora_adapter"]
    assert names[0] != names[1]
    assert names[2:] == names[:2]
    assert left.name == names[1]
    assert asked[1][1]["lora_path"] == str(left)
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_is_not_taken_names_the_remedy() -> None:
    with replay(recorded("no_adapter")) as (url, _):
        sampler = at(url)
        with pytest.raises(UserError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING") as error:
            asyncio.run(sampler.take(Learner()))
    assert "No adapter found" in str(error.value)


def test_a_server_started_anew_gets_the_adapter_again() -> None:
    with replay((200, "Success"), recorded("wrong_model"), (200, "Success"), recorded("plain")) as (url, asked):
        sampler = at(url)
        asyncio.run(sampler.take(Learner()))
        assert draw(sampler).stop_reason == "length"
    assert [path for path, _ in asked] == ["/v1/load_lora_adapter", "/v1/completions"] * 2


def test_a_server_that_hides_the_temperature_cannot_sample_with_one() -> None:
    warm = SamplingParams(8, temperature=0.7)
    with replay(recorded("one"), recorded("half"), recorded("plain")) as (url, _):
        assert len(draw(at(url), warm).token_ids) == 8
    with replay(recorded("one"), recorded("one"), recorded("plain")) as (url, _):
        sampler = at(url)
        with pytest.raises(UserError, match="logprobs-mode processed_logprobs"):
            draw(sampler, warm)
        assert len(draw(sampler).token_ids) == 8  # at temperature 1 both are the same
        assert len(draw(sampler, SamplingParams(8, 0.0)).token_ids) == 8


def test_cancelling_hangs_up() -> None:
    with replay((0, None)) as (url, _):
        sampler = at(url, ())

        async def go() -> float:
            began = time.perf_counter()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(sampler.generate((1,), SamplingParams(4), 0), 0.1)
            sampler.close()
            return time.perf_counter() - began

        assert asyncio.run(go()) < 0.4
