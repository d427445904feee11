"""What workers exchange: the formulae against a ring played by hand, and what ``memtrain plan`` says. No torch."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.commands.plan import plan as command
from memtrain.planning import communication, hardware, rehearsal, table
from memtrain.planning.communication import RANK, Replicated, all_reduce_seconds, replicated, ring_bytes, traffic
from memtrain.planning.compute import Training
from memtrain.planning.cost import Assumptions
from memtrain.planning.memory import memory
from memtrain.planning.models import KNOWN
from memtrain.planning.stages import Line, Sources, memtrain_stage
from memtrain.planning.work import Passes, Work
from memtrain.recipe import load_recipe

SMALL = ["documents.related=5", "documents.random=6", "memory.chunk_tokens=600", "memory.memory_tokens=100"]
QWEN4B, QWEN7B = KNOWN["Qwen/Qwen3-4B-Instruct-2507"], KNOWN["Qwen/Qwen2.5-7B-Instruct"]


@pytest.fixture(autouse=True)
def _little_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "ROOM", 60_000)


@cache
def published(name: str) -> tuple[Line, ...]:
    """The MemTrain stage of a published recipe at its own size, a little of it played."""
    recipe = load_recipe(name)
    return tuple(memtrain_stage(recipe, Sources.of(KNOWN[recipe.model.name], None), Assumptions()))


def way(name: str, device: str, workers: int, rank: int = 0, **assumed: float) -> Replicated:
    shape = {"paper-qwen3-4b": QWEN4B, "paper-qwen2.5-7b": QWEN7B}[name]
    found = replicated(
        shape, published(name), hardware.device(device), workers, 256, rank, replace(Assumptions(), **assumed)
    )
    assert found is not None
    return found


# ---- the formulae -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3, 5, 8])
def test_a_ring_played_by_hand_sends_what_the_formula_says_and_sums_right(workers: int) -> None:
    length = 5 * workers
    held = [[random.Random(f"{rank}/{i}").random() for i in range(length)] for rank in range(workers)]
    wanted = [math.fsum(numbers) for numbers in zip(*held, strict=True)]
    sent, hops = [0] * workers, 0

    def chunk(number: int) -> range:
        return range(5 * (number % workers), 5 * (number % workers) + 5)

    for phase in ("add", "copy"):
        for turn in range(workers - 1):
            first = 0 if phase == "add" else 1
            moving = [(rank, chunk(rank + first - turn)) for rank in range(workers)]
            values = [[held[rank][i] for i in places] for rank, places in moving]
            for (rank, places), numbers in zip(moving, values, strict=True):
                target = held[(rank + 1) % workers]
                for i, number in zip(places, numbers, strict=True):
                    target[i] = target[i] + number if phase == "add" else number
                sent[rank] += len(places)
            hops += 1
    assert all(numbers == pytest.approx(wanted) for numbers in held)
    assert sent == [ring_bytes(length, workers)] * workers
    assert hops == 2 * (workers - 1)


def test_large_sums_go_round_the_ring_and_small_ones_up_the_tree() -> None:
    large = all_reduce_seconds(16e9, 8, 100e9, 10e-6)
    assert large == pytest.approx(14 * 10e-6 + 2 * 7 / 8 * 0.16)
    small = all_reduce_seconds(1000, 32, 100e9, 10e-6)
    assert small == pytest.approx(2 * 5 * 10e-6, rel=0.01)
    assert all_reduce_seconds(16e9, 1, 100e9, 10e-6) == 0.0


@settings(max_examples=60, deadline=None)
@given(size=st.floats(1, 1e12), workers=st.integers(2, 512), bandwidth=st.floats(1e8, 1e12), hop=st.floats(0, 1e-3))
def test_no_all_reduce_is_faster_than_its_bytes_or_its_hops(
    size: float, workers: int, bandwidth: float, hop: float
) -> None:
    found = all_reduce_seconds(size, workers, bandwidth, hop)
    assert found >= ring_bytes(size, workers) / bandwidth
    assert found >= 2 * math.ceil(math.log2(workers)) * hop
    assert all_reduce_seconds(2 * size, workers, bandwidth, hop) >= found
    assert all_reduce_seconds(size, workers + 1, bandwidth, hop) >= found * (1 - 1e-9)
    assert all_reduce_seconds(size, workers, bandwidth / 2, hop) >= found


# ---- the published recipes ----------------------------------------------------------------------------------------


def test_gradients_are_four_bytes_a_trained_weight() -> None:
    assert way("paper-qwen3-4b", "b200", 8).gradients == 4 * QWEN4B.parameters == pytest.approx(16.1e9, rel=0.01)
    assert way("paper-qwen2.5-7b", "b200", 8).gradients == pytest.approx(30.5e9, rel=0.01)
    lora = way("paper-qwen2.5-7b", "b200", 8, rank=16)
    assert lora.gradients == 4 * QWEN7B.lora_parameters(16) == pytest.approx(161e6, rel=0.01)
    assert way("paper-qwen2.5-7b", "b200", 8, rank=32).gradients == 2 * lora.gradients
    assert lora.sent == pytest.approx(1.75 * lora.gradients)


def test_a_worker_holds_everything_so_a_7b_model_trains_whole_on_few_cards() -> None:
    assert way("paper-qwen3-4b", "h200", 8).fits
    assert not way("paper-qwen3-4b", "h100", 32).fits
    assert way("paper-qwen2.5-7b", "b200", 8).fits
    assert not way("paper-qwen2.5-7b", "h200", 32).fits
    assert way("paper-qwen2.5-7b", "h100", 8, rank=32).fits
    least = {workers: way("paper-qwen2.5-7b", "h200", workers).need.kept for workers in (2, 32)}
    assert least[2] == least[32]
    line = published("paper-qwen2.5-7b")[-1]
    sharded, whole = (
        memory(QWEN7B, line.work, line.training, hardware.device("h200"), 8, 1, sharded=sharded)
        for sharded in (True, False)
    )
    one = memory(QWEN7B, line.work, line.training, hardware.device("h200"), 1, 1)
    assert whole.kept == one.kept
    assert whole.training == one.training
    assert sharded.kept["two moments"] == pytest.approx(one.kept["two moments"] / 8)


def test_more_workers_make_steps_shorter_and_the_exchange_weigh_more() -> None:
    found = [way("paper-qwen3-4b", "b200", workers) for workers in (2, 8, 16, 32)]
    steps = [one.step or 0.0 for one in found]
    assert steps == sorted(steps, reverse=True)
    shares = [one.across / step for one, step in zip(found, steps, strict=True)]
    assert shares == sorted(shares)
    assert [one.in_node is not None for one in found] == [True, True, False, False]
    fair, slow = (way("paper-qwen3-4b", "b200", 32, interconnect=rate, hop=0.0).across for rate in (50.0, 1.25))
    assert slow == pytest.approx(40 * fair)
    assert found[-1].across > fair
    fast = way("paper-qwen3-4b", "b200", 8, interconnect=10_000.0)  # the device's own link bounds it
    assert fast.across == fast.in_node


def test_every_optimiser_step_is_an_exchange() -> None:
    trained = Work(train=Passes(tokens=1e6, contexts=1e9, logits=1e4), updates=400.0)
    line = Line("qa", "task training", "grpo", 100, trained, Training(), True)
    shape, device = QWEN4B, hardware.device("b200")
    four = replicated(shape, [line], device, 4, 64, 0, Assumptions())
    one = replicated(shape, [replace(line, work=replace(trained, updates=100.0))], device, 4, 64, 0, Assumptions())
    assert four is not None
    assert one is not None
    assert four.sent == 4 * one.sent
    assert four.across == pytest.approx(4 * one.across)
    asked = replace(line, kind="evaluation", trains=False)
    assert replicated(shape, [asked], device, 4, 64, 0, Assumptions()) is None
    assert traffic(shape, [asked]) is None
    assert communication.ways(shape, [line], device, 1, 64, Assumptions()) == []
    ranks = [found.rank for found in communication.ways(shape, [line], device, 2, 64, Assumptions())]
    assert ranks == [0, RANK]
    lora = replace(line, training=Training(lora_rank=4))
    assert [found.rank for found in communication.ways(shape, [lora], device, 2, 64, Assumptions())] == [4]


# ---- servers ------------------------------------------------------------------------------------------------------


def test_traffic_with_servers_by_hand() -> None:
    work = Work(
        prefill=Passes(tokens=50, separate=100),
        reference=Passes(tokens=60, separate=200),
        train=Passes(tokens=60, separate=200),
        updates=10.0,
    )
    found = traffic(QWEN4B, [Line("memtrain", "GRPO", "grpo", 10, work, Training(lora_rank=8), True)])
    assert found is not None
    assert found.adapter == 4 * QWEN4B.lora_parameters(8)
    assert found.to_server == pytest.approx((6.3 * 300 + 20 * 200) / 10)
    assert found.from_server == pytest.approx(4 * 400 / 10)


def test_bytes_of_a_datum_are_those_of_the_real_client() -> None:
    types = pytest.importorskip("tinker.types")
    request = pytest.importorskip("tinker.types.forward_backward_request")
    data = pytest.importorskip("tinker.types.forward_backward_input")
    conversion = pytest.importorskip("tinker.proto.request_conv")
    n = 4000
    ids = [random.Random(place).randrange(151_936) for place in range(n)]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(ids),
        loss_fn_inputs={"target_tokens": ids, "logprobs": [-1.5] * n, "advantages": [0.25] * n},
    )
    body = data.ForwardBackwardInput(data=[datum], loss_fn="importance_sampling")
    message = conversion.forward_backward_request_to_proto(
        request.ForwardBackwardRequest(model_id="model", seq_id=1, forward_backward_input=body)
    )
    assert len(message.SerializeToString()) / n == pytest.approx(communication.DATUM_TOKEN, rel=0.02)
    text = json.dumps(ids, separators=(",", ":"))
    assert len(text) / n == pytest.approx(communication.JSON_TOKEN, rel=0.02)


def test_links_are_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "plan.md").read_text(encoding="utf-8")
    for device in hardware.GPUS.values():
        assert f"| {device.year} | {device.link / 1e9:g} | {device.source} |" in text, device.name


def test_the_page_about_clusters_shows_what_the_formulas_say() -> None:
    """Gradients and bytes to the digit; times of the exchange, which do not depend on how much is played."""
    text = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| Qwen")]
    rows = [row for row in rows if len(row) == 10]
    assert len(rows) == 24
    for model, trains, workers, gradients, sent, _, inside, *networks in rows:
        name = {"Qwen3-4B": "paper-qwen3-4b", "Qwen2.5-7B": "paper-qwen2.5-7b"}[model]
        rank = 0 if trains == "all weights" else int(trains.removeprefix("LoRA "))
        found = [way(name, "b200", int(workers), rank, interconnect=rate) for rate in (400.0, 50.0, 1.25)]
        assert gradients == table._bytes(found[0].gradients)
        assert sent == table._bytes(found[0].sent)
        assert inside.split(" (")[0] == ("-" if found[0].in_node is None else table._seconds(found[0].in_node))
        assert [cell.split(" (")[0] for cell in networks] == [table._seconds(one.across) for one in found]


# ---- the command --------------------------------------------------------------------------------------------------


def planned(tmp_path: Path, **options: Any) -> dict[str, Any]:
    out = tmp_path / "plan.json"
    command("paper-qwen3-4b", stage=("memtrain",), out=out, overrides=((*SMALL,),), **options)
    return json.loads(out.read_text())


def test_the_plan_shows_workers_where_there_are_several(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = planned(tmp_path, device=("h100", "h200"), devices=16, assume=(("interconnect=25",),))
    shown = capfd.readouterr().out
    assert "16 data-parallel workers" in shown
    assert "nodes at 25 GB/s" in shown
    assert "Tinker-API server gets" in shown
    (note,) = [line for line in shown.splitlines() if "shard nothing;" in line]
    for piece in ("H100", "86 GB", "model.lora_rank=16", 'engine = "tinker"'):
        assert piece in note
    h100, h200 = (device["workers"] for device in data["devices"])
    assert [way["lora_rank"] for way in h200] == [0, RANK]
    assert not h100[0]["fits"]
    assert h100[0]["step_seconds"] is None
    assert h200[0]["gradient_bytes"] == 4 * QWEN4B.parameters
    assert h200[0]["in_node_seconds"] is None  # 16 workers are more than a node holds
    assert h200[0]["across_seconds"] == pytest.approx(2 * 15 / 16 * 4 * QWEN4B.parameters / (0.75 * 25e9), rel=0.3)
    assert data["traffic_bytes"]["adapter_rank"] == RANK
    alone = planned(tmp_path, device=("h200",), devices=1)
    assert "data-parallel workers," not in capfd.readouterr().out
    assert alone["devices"][0]["workers"] == []


def test_an_adapter_needs_no_remedy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    command(
        "paper-qwen2.5-7b",
        device=("h100",),
        devices=8,
        stage=("memtrain",),
        out=out,
        overrides=((*SMALL, "model.lora_rank=32"),),
    )
    assert "shard nothing;" not in capfd.readouterr().out
    (way,) = json.loads(out.read_text())["devices"][0]["workers"]
    assert way["lora_rank"] == 32
    assert way["fits"]
    assert 0 < way["in_node_seconds"] < way["across_seconds"] < 0.01 * way["step_seconds"]
