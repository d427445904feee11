"""The bench's own arithmetic: statistics, turns, formulas, tables. No stop watch is tested by a stop watch."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtrain.bench import flops, harness, limit, run
from memtrain.bench.decode import shares
from memtrain.bench.environment import environment
from memtrain.bench.harness import Contestant, contest, spread
from memtrain.bench.limit import ideal_seconds, linear_shapes, measure_limit
from memtrain.bench.memory import peak_memory
from memtrain.bench.peers import trl, vllm
from memtrain.bench.plot import draw
from memtrain.bench.progress import Progress
from memtrain.bench.report import BEGIN, END, lines_of, read_results, render, write_readme
from memtrain.bench.settings import BENCHMARKS, BenchSettings, override, quick, recipe_of
from memtrain.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control product and the limit at a size that costs nothing."""
    monkeypatch.setattr(harness, "CONTROL_SIZE", 32)
    monkeypatch.setattr(limit, "SECONDS_EACH", 0.01)


@given(values=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9))
def test_spread_is_ordered(values: list[float]) -> None:
    found = spread(values)
    low, high = found["quartiles"]
    assert found["min"] <= low <= found["median"] * (1 + 1e-12)
    assert found["median"] <= high * (1 + 1e-12) <= found["max"] * (1 + 1e-9)
    assert found["n"] == len(values)
    assert found["values"] == values
    assert sum(v <= found["median"] for v in values) * 2 >= len(values)


def test_everyone_runs_once_a_round_in_turn() -> None:
    ran: list[str] = []
    contestants = [
        Contestant("a", lambda: ran.append("a"), 10.0),
        Contestant("b", lambda: ran.append("b"), 10.0, warm_up=lambda: ran.append("warm b")),
        Contestant("c", lambda: ran.append("c"), 5.0),
    ]
    said: list[str] = []
    counted: list[tuple[int, int]] = []
    progress = Progress(said.append, lambda what, done, total: counted.append((done, total)), "x")
    found = contest(contestants, 3, CPU, progress, settle=0.0)
    assert ran == ["a", "warm b", "c", "a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert len(said) == len(counted) == 12
    assert counted[-1] == (12, 12)
    assert set(found["ratios"]) == {"b", "c"}
    for entry in found["contestants"].values():
        assert entry["seconds"]["n"] == entry["control_gflops_before"]["n"] == 3


def test_ratios_are_taken_round_by_round_and_by_units() -> None:
    clock = {"us": iter([1.0, 2.0, 4.0]), "them": iter([3.0, 4.0, 20.0])}
    contestants = [
        Contestant("us", lambda: next(clock["us"]), 8.0, self_timed=True),
        Contestant("them", lambda: next(clock["them"]), 4.0, self_timed=True),
    ]
    found = contest(contestants, 3, CPU, warm=False, settle=0.0)
    # Twice the units in a third of the time: six times as fast.
    assert found["ratios"]["them"]["values"] == pytest.approx([6.0, 4.0, 10.0])
    assert found["ratios"]["them"]["median"] == pytest.approx(6.0)
    assert found["contestants"]["us"]["per_second"]["values"] == pytest.approx([8.0, 4.0, 2.0])


# ---- arithmetic ---------------------------------------------------------------------------------------------------


def counted_flops(model: Any, rows: list[list[int]]) -> float:
    """What torch itself counts in the products of separate forward passes, attention in plain steps."""
    from torch.utils.flop_counter import FlopCounterMode

    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for row in rows:
            model(input_ids=torch.tensor([row]), use_cache=False)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_flops_of_separate_rows_are_what_torch_counts(family: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.model_folder(family), dtype=torch.float32)
    size = flops.ModelSize.of(model)
    rows = [list(range(8, 8 + n)) for n in (5, 17)]
    work = flops.forward(size, rows, logits=sum(map(len, rows)), share=False)
    # Eager attention multiplies the masked half of the scores too; the formula counts what is needed.
    masked = size.attention(sum(len(row) * (len(row) - 1) / 2 for row in rows))
    assert work.total + masked == pytest.approx(counted_flops(model, rows), rel=1e-9)


def test_sharing_counts_a_common_prefix_once() -> None:
    size = flops.ModelSize(body=100, head=1000, layers=2, attention_width=8)
    stem = list(range(40))
    rows = [[*stem, 50, 51], [*stem, 60, 61]]
    together, apart = (flops.forward(size, rows, 4, share) for share in (True, False))
    assert together.body == 2 * 100 * 44
    assert apart.body == 2 * 100 * 84
    assert together.head == apart.head == 2 * 1000 * 4
    once = 40 * 41 / 2
    assert apart.attention - together.attention == pytest.approx(size.attention(once))
    trained = flops.update(size, [(row, 2) for row in rows], reference=True)
    assert trained.head == 4 * together.head
    decoded = flops.decoding(size, rows, 3)
    assert decoded.attention == size.attention(2 * (42 + 43 + 44))


def test_the_limit_knows_every_linear_layer() -> None:
    loaded = tiny.engine("llama").loaded
    shapes = linear_shapes(loaded.base)
    head = shapes["head"]
    body = sum(out * into * count for name, (out, into, count) in shapes.items() if name != "head")
    size = flops.ModelSize.of(loaded.base)
    assert (body, head[0] * head[1]) == (size.body, size.head)
    found = measure_limit(loaded.base, CPU, torch.float32, rows=(4,))
    entry = found["rows"]["4"]
    assert set(entry["gflops_by_shape"]) == set(shapes)
    slowest, fastest = min(entry["gflops_by_shape"].values()), max(entry["gflops_by_shape"].values())
    assert slowest <= entry["body_gflops"] <= fastest
    work = flops.Flops(entry["body_gflops"] * 1e9, entry["gflops_by_shape"]["head"] * 1e9, 0.0)
    assert ideal_seconds(work, found, 4) == pytest.approx(2.0)


def test_peak_memory_sees_a_block_that_is_gone_at_the_end() -> None:
    size = 64 << 20

    def work() -> None:
        # From the system itself: what an earlier test has freed may still be the process's own.
        with mmap.mmap(-1, size) as block:
            for page in range(0, size, mmap.PAGESIZE):
                block[page] = 1

    found = peak_memory(work, CPU)
    if found["how"] != "VmHWM":
        pytest.skip("the system keeps no mark that can be set back")
    assert size * 0.9 < found["increase_bytes"] < size * 1.5
    assert peak_memory(lambda: None, CPU)["increase_bytes"] < size / 4


def test_a_process_gives_up_before_the_machine_is_full() -> None:
    code = (
        "from memtrain.bench import memory; import json, time\n"
        "memory.GUARD_SHARE = 1e-9\n"
        "memory.give_up_when_full(lambda found: print(json.dumps(found), flush=True))\n"
        "time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["exceeded_bytes"] >= found["before_bytes"] > 0
    assert found["increase_bytes"] == found["exceeded_bytes"] - found["before_bytes"]


def test_shares_of_a_step() -> None:
    own = {"aten::mm": 4.0, "aten::bmm": 2.0, "aten::add": 3.0, "aten::_scaled_dot_product_flash": 1.0, "aten::x": -0.1}
    found = shares(own, {**own, "aten::bmm": 3.0, "aten::matmul": 9.0}, step_ms=12.0)
    assert found["profiled_ms_per_step"] == 10.0
    assert (found["linear_ms"], found["attention_products_ms"], found["fused_attention_ms"]) == (4.0, 3.0, 1.0)
    assert found["share_products"] == pytest.approx(0.7)
    assert found["share_products_without_copies"] == pytest.approx(0.6)
    assert found["share_products_of_unprofiled_step"] == pytest.approx(7 / 12)
    # Our own kernel: its products count, wherever it was called from.
    inside = shares({"aten::mm": 4.0, "memtrain::attend": 6.0}, {}, 12.0, (3.0, 5.0))
    assert inside["share_products"] == pytest.approx(0.7)
    outside = shares({"aten::mm": 4.0, "aten::add": 1.0}, {}, 12.0, (3.0, 5.0))
    assert outside["share_products"] == pytest.approx(0.7)


# ---- settings, peers that are not there ---------------------------------------------------------------------------


def test_settings_from_the_command_line() -> None:
    changed = override(BenchSettings(), ["rounds=5", "kl_coef=0", "length_chunks=4,9", "model=x"])
    assert (changed.rounds, changed.kl_coef, changed.length_chunks, changed.model) == (5, 0.0, (4, 9), "x")
    assert recipe_of(replace(changed, model="smollm2-135m")).train.kl_coef == 0.0
    small = quick(BenchSettings())
    assert small.group_size * small.chunk_tokens < BenchSettings().group_size * BenchSettings().chunk_tokens


@pytest.mark.parametrize(
    ("text", "piece"),
    [("round=5", "rounds"), ("rounds", "rounds"), ("rounds=x", "rounds"), ("length_chunks=8", "(8, 64)")],
)
def test_a_mistake_in_the_settings_is_one_sentence(text: str, piece: str) -> None:
    with pytest.raises(UserError, match=r".") as error:
        override(BenchSettings(), [text])
    assert piece in str(error.value)


def test_names_of_benchmarks() -> None:
    assert run.choose(["all"]) == list(BENCHMARKS)
    assert run.choose(["update", "limit"]) == ["limit", "update"]
    assert run.choose(["tune", "all"]) == [*BENCHMARKS, "tune"]
    with pytest.raises(UserError, match="no benchmark named 'speed'"):
        run.choose(["speed"])


def test_missing_peers_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trl, vllm):
        monkeypatch.setattr(module, "version_of", lambda name: None)
        reason = module.missing()
        assert reason is not None
        assert "left out" in reason
        assert "pip install" in reason
        monkeypatch.setattr(module, "version_of", lambda name: "1.0")
        assert module.missing() is None


def test_the_environment_names_no_machine_and_no_place() -> None:
    text = json.dumps(environment(CPU))
    import platform

    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert {"processor", "cores", "threads", "versions"} <= set(json.loads(text))


# ---- tables -------------------------------------------------------------------------------------------------------


def one(value: float) -> dict[str, Any]:
    return spread([value * 0.9, value, value * 1.2])


def results() -> dict[str, dict[str, Any]]:
    """Files as a run writes them, numbers made up: some targets met, some missed."""
    entry = {"seconds": one(2.0), "per_second": one(900.0)}
    both = {"memtrain": entry, "vllm": {"seconds": one(3.0), "per_second": one(500.0)}}
    batch = {
        "contestants": both,
        "ratios": {"vllm": one(1.8)},
        "work": {"sequences": 64},
        "limit": {"share": 0.5, "gflops": 400.0},
    }
    peer = "per-row transformers"
    memory = {who: {"increase_bytes": size, "rows": 16} for who, size in (("memtrain", 1 << 30), (peer, 3 << 30))}
    profile = {"share_products": 0.55, "linear_ms": 20.0, "attention_products_ms": 5.0, "profiled_ms_per_step": 45.0}
    made = {
        "rollouts": {"batches": {"4 x 16": batch}, "skipped": {"other": "not installed, so it is left out"}},
        "update": {
            "contestants": {"memtrain": entry, peer: entry},
            "ratios": {peer: one(3.9)},
            "memory": memory,
            "limit": {"memtrain": {"share": 0.6}, peer: {"share": 0.4}},
            "agreement": {"loss_memtrain": 0.5, "loss_per_row": 0.5, "gradient_cosine": 0.9999},
        },
        "step": {"contestants": {"memtrain": entry, "TRL GRPOTrainer": entry}, "ratios": {"TRL GRPOTrainer": one(7.0)}},
        "decode": {"profile": profile, "ms_per_step": one(50.0), "work": {"sequences": 64}},
        "length": {
            "work": {"chunks": [8, 64]},
            "seconds": {"8": one(1.0), "64": one(8.0)},
            "peak_bytes": {"8": one(2e9), "64": one(2e9)},
            "time_ratio": one(8.1),
            "memory_ratio": one(1.01),
        },
    }
    machine = {"processor": "P", "cores": 2, "versions": {"torch": "9"}}
    around = {"environment": machine, "date": "2026-01-01", "settings": {}, "format": 1}
    return {name: {**around, "benchmark": name, "result": result} for name, result in made.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, result in results().items():
        run.write_result(tmp_path / f"{name}.json", result)
    return tmp_path


def test_the_table_says_what_was_met(folder: Path) -> None:
    text, lines = render(folder)
    met = {(line.work.split(":")[0].split(",")[0], line.unit): line.met for line in lines}
    assert met[("rollouts", "x")]
    assert met[("peak memory of the update", "x")]
    assert met[("whole GRPO step", "x")]
    assert not met[("joint update", "x")]
    assert not met[("decoding step", "%")]
    assert [line.met for line in lines if line.unit == "<="] == [True, True]
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert len(rows) == 2 + len(lines)
    assert len({row.count("|") for row in rows}) == 1
    assert "**1.80x**" in text
    assert "900 / 500 new tokens/s" in text
    assert "**55%**" in text
    assert "- rollouts, other: not installed, so it is left out." in text


def test_a_peer_that_filled_the_machine_is_a_lower_bound(tmp_path: Path) -> None:
    found = results()["update"]
    found["result"]["memory"]["per-row transformers"]["exceeded_bytes"] = 9 << 30
    run.write_result(tmp_path / "update.json", found)
    text, lines = render(tmp_path)
    assert "1.00 / over 3.00 GiB above what stood before, then the machine was full" in text
    assert lines[-1].value == 3.0


def test_the_table_of_a_single_benchmark(folder: Path) -> None:
    for name in results():
        alone = {name: read_results(folder)[name]}
        assert lines_of(alone)
    assert draw([], folder / "none.png") is None


def test_the_picture_is_drawn(folder: Path) -> None:
    assert run.report(folder)
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_is_filled_between_its_marks(folder: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    run.report(folder, readme)
    run.report(folder, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| work |")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert text.count("joint update") == 1
    readme.write_text("no marks")
    with pytest.raises(UserError, match="no place for results"):
        write_readme(readme, "x")


def test_no_results_and_damaged_ones_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        read_results(tmp_path)
    (tmp_path / "step.json").write_text("{}")
    with pytest.raises(UserError, match=r"step\.json is not a result"):
        read_results(tmp_path)
