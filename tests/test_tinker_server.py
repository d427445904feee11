"""The Tinker engine on a real server: SkyRL on the CPU. Slow: it loads JAX and compiles."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tiny
import torch
from skyrl_server import MICRO_BATCH, SkyRL, running

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.tinker.connect import connect
from memtrain.engines.tinker.engine import TinkerEngine
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import load_model
from memtrain.errors import UserError
from memtrain.recipe import ModelSettings
from memtrain.settings.tinker import TinkerSettings
from memtrain.types import Row, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RANK = 4
STEP = OptimiserConfig(lr=1e-3, weight_decay=0.0, grad_clip=0.0)
ON_POLICY = LossConfig(kl_coef=0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[SkyRL]:
    with running(tiny.model_folder("llama")) as found:
        yield found


@pytest.fixture(scope="module")
def first_updates() -> Iterator[dict[str, Any]]:
    """What the comparisons of a first update found; with MEMTRAIN_TINKER_RESULTS=FOLDER a plot and a file of it."""
    found: dict[str, Any] = {}
    yield found
    if found and os.environ.get("MEMTRAIN_TINKER_RESULTS"):
        plot_first_updates(found, Path(os.environ["MEMTRAIN_TINKER_RESULTS"]))


def plot_first_updates(found: dict[str, Any], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(1, len(found), figsize=(4 * len(found), 4), squeeze=False)
    for place, (name, (remote, local)) in enumerate(sorted(found.items())):
        axes[0][place].plot(local, remote, ".", markersize=4)
        axes[0][place].axline((0, 0), slope=1, color="0.6", linewidth=1)
        axes[0][place].set_title(f"{name}\ncosine {cosine(remote, local):.6f}", fontsize=9)
        axes[0][place].set_xlabel("in process (nats)")
    axes[0][0].set_ylabel("through the server (nats)")
    figure.suptitle("Change of fixed probes' log-probs by the first update", fontsize=10)
    figure.tight_layout()
    figure.savefig(folder / "first-update.png", dpi=120)
    numbers = {
        name: {"cosine": cosine(remote, local), "ratio": float(remote.norm() / local.norm())}
        for name, (remote, local) in sorted(found.items())
    }
    (folder / "first-update.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_CREDENTIAL_CMD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")


def engine_on(server: SkyRL, seed: int = 0, **settings: Any) -> TinkerEngine:
    data = {"base_url": server.url, "rows_multiple": MICRO_BATCH, "reduction": "sequence-mean", **settings}
    folder = str(server.model)
    return connect(folder, ModelSettings(name=folder, lora_rank=RANK), TinkerSettings(**data), seed)


def twin(engine: TinkerEngine, folder: Path) -> TorchEngine:
    """The in-process engine in the same state: the server's own adapter in place of ours."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    folder.mkdir()
    tiny.run(engine.export(folder))
    settings = ModelSettings(name=engine.folder, dtype="float32", device="cpu", lora_rank=RANK)
    loaded = load_model(engine.folder, settings)
    weights = load_file(folder / "adapter_model.safetensors")
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert len(weights) == len(trained)  # the same modules on both sides
    missing = set_peft_model_state_dict(loaded.model, weights)
    assert not missing.unexpected_keys
    return TorchEngine(loaded)


def probes(n: int = 12) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    rng = random.Random(7)
    return [(tiny.ids(rng, 10 + place), tiny.ids(rng, 8)) for place in range(n)]


async def scores(engine: Any, weights: str = "policy") -> torch.Tensor:
    found = await asyncio.gather(*(engine.score(p, c, weights) for p, c in probes()))
    return torch.tensor([value for row in found for value in row])


async def on_policy(engine: Any, rows: Sequence[Row]) -> list[Row]:
    """The rows with the policy's own log-probs, as if it had sampled them."""
    drawn = await asyncio.gather(*(engine.score(row.prompt_ids, row.completion_ids) for row in rows))
    return [
        replace(row, logprobs=tuple(found)) if row.loss == "policy" else row
        for row, found in zip(rows, drawn, strict=True)
    ]


def rows_of(kind: str) -> list[Row]:
    rows = tiny.joint_rows()
    return [row for row in rows if kind in ("joint", row.loss)]


def changes(engine: Any, rows: Sequence[Row], loss: LossConfig, step: OptimiserConfig = STEP) -> tuple[Any, Any]:
    """What one update does to the log-probs of the probes, and its metrics."""

    async def run() -> tuple[torch.Tensor, dict[str, float]]:
        before = await scores(engine)
        metrics = await engine.update(await on_policy(engine, rows), loss, step)
        return await scores(engine) - before, metrics

    return tiny.run(run())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


# ---- the same first update ------------------------------------------------------------------------------------------


LOSSES = ("importance_sampling", "ppo", "cispo")


@pytest.mark.parametrize(
    ("kind", "name"), [("cross_entropy", "ppo"), *((kind, name) for kind in ("policy", "joint") for name in LOSSES)]
)
def test_the_first_update_is_the_in_process_engines(
    kind: str, name: str, server: SkyRL, tmp_path: Path, first_updates: dict[str, Any]
) -> None:
    engine = engine_on(server, loss=name)
    local = twin(engine, tmp_path / "adapter")
    rows, loss = rows_of(kind), replace(ON_POLICY, kl_coef=0.0 if kind == "cross_entropy" else 0.01)
    remote_change, remote = changes(engine, rows, loss)
    local_change, own = changes(local, rows, loss)
    ratio = float(remote_change.norm() / local_change.norm())
    first_updates[f"{kind} rows" if kind == "cross_entropy" else f"{kind} rows, {name}"] = (remote_change, local_change)
    print(f"{kind} {name}: cosine {cosine(remote_change, local_change):.6f}, ratio of magnitudes {ratio:.4f}")
    assert cosine(remote_change, local_change) > 0.999
    assert ratio == pytest.approx(1, abs=0.01)
    # The server's gradient is that of the joint loss, not merely one of its direction.
    assert remote["grad_norm"] == pytest.approx(own["grad_norm"], rel=1e-3)
    for key in ("loss", "rows", "policy_tokens", "entropy", "clip_fraction", "cross_entropy", "kl"):
        assert remote.get(key, 0.0) == pytest.approx(own.get(key, 0.0), rel=1e-3, abs=1e-5), key
    engine.close()


def test_kl_and_a_second_update_are_the_in_process_engines(server: SkyRL, tmp_path: Path) -> None:
    """Once the policy has left the reference, the penalty on advantages is the gradient of the k3 term."""
    engine = engine_on(server)
    local = twin(engine, tmp_path / "adapter")
    rows, loss = rows_of("policy"), replace(ON_POLICY, kl_coef=2.0, normaliser="tokens")
    step = replace(STEP, weight_decay=5.0)  # large, so that it would show in a reference that decays with the policy
    for which in (engine, local):  # an adapter whose B is zero has nothing to decay
        changes(which, rows, ON_POLICY)
        tiny.run(which.anchor())
    start = tiny.run(scores(engine))
    for number in range(3):
        remote_change, remote = changes(engine, rows, loss, step)
        local_change, own = changes(local, rows, loss, step)
        print(f"update {number + 1}: cosine {cosine(remote_change, local_change):.6f}, kl {remote['kl']:.5f}")
        assert cosine(remote_change, local_change) > 0.995
        assert remote["grad_norm"] == pytest.approx(own["grad_norm"], rel=0.01)
        assert remote["kl"] == pytest.approx(own["kl"], rel=0.02, abs=1e-5)
    assert remote["kl"] > 1e-3
    assert float((tiny.run(scores(engine, "reference")) - start).abs().max()) < 1e-4
    engine.close()


def test_rows_off_the_policy_are_clipped_and_weighed_alike(server: SkyRL, tmp_path: Path) -> None:
    """The sampler's log-probs as denominator, and a cap on the weights of a sampler that is not the policy."""
    for number, loss in enumerate(
        (
            replace(ON_POLICY, old_logprobs="sampler", clip_low=0.1, clip_high=0.3),
            replace(ON_POLICY, importance_sampling_cap=1.2),
        )
    ):
        engine = engine_on(server)
        local = twin(engine, tmp_path / f"adapter-{number}")
        rng = random.Random(3)
        rows = tiny.run(on_policy(local, rows_of("policy")))
        rows = [replace(row, logprobs=tuple(p + rng.uniform(-0.5, 0.5) for p in row.logprobs)) for row in rows]

        async def run(which: Any, rows: Any = rows, loss: Any = loss) -> tuple[torch.Tensor, dict[str, float]]:
            before = await scores(which)
            metrics = await which.update(rows, loss, STEP)
            return await scores(which) - before, metrics

        remote_change, remote = tiny.run(run(engine))
        local_change, own = tiny.run(run(local))
        assert cosine(remote_change, local_change) > 0.999
        assert remote["grad_norm"] == pytest.approx(own["grad_norm"], rel=1e-3)
        for key in ("clip_fraction", "sampler_gap", "sampler_truncated", "loss"):
            assert remote.get(key, 0.0) == pytest.approx(own.get(key, 0.0), rel=1e-3, abs=1e-5), key
        assert remote["clip_fraction"] > 0.05 or remote["sampler_truncated"] > 0.05
        engine.close()


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_samples_have_the_log_probs_of_both_engines(server: SkyRL, tmp_path: Path) -> None:
    engine = engine_on(server)
    tiny.run(engine.update(rows_of("joint"), ON_POLICY, STEP))
    local = twin_again(engine, tmp_path / "trained")

    async def run() -> tuple[list[Any], list[float], list[float]]:
        prompt = probes()[0][0]
        groups = await asyncio.gather(*(engine.sample(prompt, SamplingParams(24), n=4) for _ in range(3)))
        drawn = [completion for group in groups for completion in group]
        told = [p for c in drawn for p in c.logprobs]
        served = [p for c in drawn for p in await engine.score(prompt, c.token_ids)]
        own = [p for c in drawn for p in await local.score(prompt, c.token_ids)]
        assert len({c.token_ids for c in drawn}) == 12  # samples of one request differ
        return (
            drawn,
            [abs(a - b) for a, b in zip(told, served, strict=True)],
            [abs(a - b) for a, b in zip(told, own, strict=True)],
        )

    drawn, by_server, by_us = tiny.run(run())
    print(f"mean gap in nats: sampler to server {fmean(by_server):.2e}, to us {fmean(by_us):.2e}")
    assert max(by_server) < 1e-3
    assert max(by_us) < 1e-3
    ends = [completion for completion in drawn if completion.stop_reason == "stop"]
    assert all(completion.token_ids[-1] in engine.end_ids for completion in ends)
    engine.close()


def twin_again(engine: TinkerEngine, folder: Path) -> TorchEngine:
    """The trained adapter as peft and transformers load it."""
    folder.mkdir()
    tiny.run(engine.export(folder))
    return TorchEngine(load_model(folder, ModelSettings(name=str(folder), dtype="float32", device="cpu")))


def test_equal_prompts_of_a_group_are_one_request(server: SkyRL) -> None:
    engine = engine_on(server)
    tiny.run(engine.sample((9, 10, 11), SamplingParams(4)))
    before = len(sampling_batches(server))

    async def run() -> list[Any]:
        return await asyncio.gather(*(engine.sample((9, 10, 11), SamplingParams(4)) for _ in range(8)))

    drawn = tiny.run(run())
    assert len({c.token_ids for group in drawn for c in group}) > 4
    assert sampling_batches(server)[before:] == ["1"]
    engine.close()


def sampling_batches(server: SkyRL) -> list[str]:
    """How many requests each batch of samples had, by the server's log (its lines are wrapped)."""
    text = " ".join(server.log().split())
    return re.findall(r"\(timing\) process_batch_requests\(sample, n=(\d+)\)", text)


def test_seeds_repeat_and_differ(server: SkyRL) -> None:
    engine = engine_on(server)

    async def run() -> list[Any]:
        found = []
        for seed in ("a", "a", "b"):
            await engine.reseed(seed)
            found.append([c.token_ids for c in await engine.sample((9, 10, 11), SamplingParams(6), n=2)])
        return found

    first, again, other = tiny.run(run())
    assert first == again != other
    engine.close()


# ---- the server's ways ----------------------------------------------------------------------------------------------


def test_the_reduction_is_measured(server: SkyRL) -> None:
    engine = engine_on(server, reduction="auto")
    tiny.run(engine.prepare(ON_POLICY, STEP))
    assert engine._reduction == "sequence-mean"
    with pytest.raises(UserError, match=r"train\.grad_clip' is 1.*set it to 0"):
        tiny.run(engine.prepare(ON_POLICY, replace(STEP, grad_clip=1.0)))
    with pytest.raises(UserError, match=r"train\.temperature' is 0\.7.*set it to 1"):
        tiny.run(engine.prepare(replace(ON_POLICY, temperature=0.7), STEP))
    engine.close()


def test_without_undoing_the_means_the_update_is_another(server: SkyRL, tmp_path: Path) -> None:
    """What is at stake: rows of different lengths no longer weigh what the objective says."""
    engine = engine_on(server, reduction="sum")
    local = twin(engine, tmp_path / "adapter")
    remote_change, _ = changes(engine, rows_of("joint"), ON_POLICY)
    local_change, _ = changes(local, rows_of("joint"), ON_POLICY)
    print(f"as a sum: cosine {cosine(remote_change, local_change):.4f}")
    assert cosine(remote_change, local_change) < 0.999
    engine.close()


def test_a_state_is_saved_loaded_and_goes_on_to_the_same_numbers(server: SkyRL, tmp_path: Path) -> None:
    engine, rows, loss = engine_on(server), rows_of("joint"), replace(ON_POLICY, kl_coef=0.01)

    async def first() -> torch.Tensor:
        await engine.update(rows, loss, STEP)
        await engine.save(tmp_path)
        await engine.update(rows, loss, STEP)
        return await scores(engine)

    wanted = tiny.run(first())
    assert {path.name for path in tmp_path.iterdir()} == {"tinker.json"}
    assert json.loads((tmp_path / "tinker.json").read_text())["state"].startswith("tinker://")
    engine.close()
    other = engine_on(server, seed=5)

    async def second() -> torch.Tensor:
        await other.load(tmp_path)
        await other.update(rows, loss, STEP)
        return await scores(other)

    assert float((tiny.run(second()) - wanted).abs().max()) < 1e-5
    other.close()


def test_a_forgotten_optimiser_starts_anew(server: SkyRL) -> None:
    engine, rows = engine_on(server), rows_of("joint")
    adam = replace(STEP, lr=1e-2)

    async def run() -> tuple[float, float, float]:
        still = replace(adam, lr=0.0)
        await engine.update(rows, ON_POLICY, adam)
        before = await scores(engine)
        await engine.reset_optimiser()
        moved = float((await scores(engine) - before).abs().max())
        await engine.update(rows, ON_POLICY, still)
        frozen = float((await scores(engine) - before).abs().max())
        await engine.reset_optimiser()
        await engine.update(rows, ON_POLICY, adam)
        return moved, frozen, float((await scores(engine) - before).abs().max())

    moved, frozen, trained = tiny.run(run())
    assert moved < 1e-6
    assert frozen < 1e-6
    assert trained > 1e-3
    engine.close()


# ---- a server that goes away ----------------------------------------------------------------------------------------


def test_a_server_killed_in_an_update_and_started_again(tmp_path: Path) -> None:
    """The run waits and goes on: every update is applied once, and the end is that of an undisturbed run."""
    rows, loss = rows_of("joint"), replace(ON_POLICY, kl_coef=0.01)

    async def updates(engine: TinkerEngine, server: SkyRL | None) -> tuple[torch.Tensor, list[float]]:
        done, prompt = [], probes()[0][0]
        for number in range(4):
            drawn = engine.sample(prompt, SamplingParams(16), n=2)
            if number == 1 and server is not None:
                threading.Thread(target=restart, args=(server, 0.1, 3.0)).start()
            await drawn
            if number == 2 and server is not None:
                threading.Thread(target=restart, args=(server, 0.3, 3.0)).start()
            done.append((await engine.update(rows, loss, STEP))["loss"])
        return await scores(engine), done

    with running(tiny.model_folder("llama")) as server:
        undisturbed = engine_on(server)
        wanted, wanted_losses = tiny.run(updates(undisturbed, None))
        undisturbed.close()
        engine = engine_on(server)
        began = time.monotonic()
        found, losses = tiny.run(updates(engine, server))
        print(f"killed twice, {engine.model.generation} reloads, {time.monotonic() - began:.0f} s")
        assert engine.model.generation >= 2
        assert losses == pytest.approx(wanted_losses, rel=1e-4)
        assert float((found - wanted).abs().max()) < 1e-4
        engine.close()


def restart(server: SkyRL, after: float, pause: float) -> None:
    time.sleep(after)
    server.kill()
    time.sleep(pause)
    server.start()


def test_a_server_that_stays_away_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    rows = rows_of("joint")
    with running(tiny.model_folder("llama")) as server:
        engine = engine_on(server, patience=4)
        tiny.run(engine.update(rows, ON_POLICY, STEP))
        server.kill()
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"{server.url} has not answered for 4 seconds; .*--resume"):
            tiny.run(engine.update(rows, ON_POLICY, STEP))
        assert time.monotonic() - began < 30
        tiny.run(engine.save(tmp_path))  # without a server: what is certain is the state before
        assert json.loads((tmp_path / "tinker.json").read_text())["state"] == engine.model.state


def test_a_server_that_lost_its_states_says_so(tmp_path: Path) -> None:
    rows = rows_of("joint")
    with running(tiny.model_folder("llama")) as server:
        engine = engine_on(server)
        tiny.run(engine.update(rows, ON_POLICY, STEP))
        server.kill()
        (server.folder / "tinker.db").unlink()
        for left in server.folder.glob("tinker.db-*"):
            left.unlink()
        server.start()
        with pytest.raises(UserError, match="no longer has the state tinker://"):
            tiny.run(engine.update(rows, ON_POLICY, STEP))


def test_ray_and_two_processes(tmp_path: Path) -> None:
    """Workers that Ray starts, the model's weights sharded over them: the same samples' log-probs and update."""
    backend = {"use_ray": True, "num_processes": 2, "fully_sharded_data_parallel_size": 2}
    with running(tiny.model_folder("llama"), **backend) as server:
        engine = engine_on(server)
        local = twin(engine, tmp_path / "adapter")
        prompt = probes()[0][0]
        (drawn,) = tiny.run(engine.sample(prompt, SamplingParams(8)))
        assert list(drawn.logprobs) == pytest.approx(tiny.run(local.score(prompt, drawn.token_ids)), abs=1e-4)
        remote_change, remote = changes(engine, rows_of("joint"), ON_POLICY)
        local_change, own = changes(local, rows_of("joint"), ON_POLICY)
        print(f"two processes: cosine {cosine(remote_change, local_change):.6f}")
        assert cosine(remote_change, local_change) > 0.999
        assert remote["grad_norm"] == pytest.approx(own["grad_norm"], rel=1e-3)
        engine.close()
