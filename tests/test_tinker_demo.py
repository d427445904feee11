"""The demo recipe through a real Tinker-API server beside the in-process engine: rewards, log-probs, a kill -9.

By default two small steps. What docs/results/tinker shows is (about half an hour on 2 cores):

    MEMTRAIN_TINKER_STEPS=10 MEMTRAIN_TINKER_RESULTS=docs/results/tinker pytest -m slow tests/test_tinker_demo.py
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tiny
import torch
from skyrl_server import MICRO_BATCH, SkyRL, running

from memtrain.assets import model_path
from memtrain.corpus import documents as corpus_documents
from memtrain.engines.tinker.connect import connect
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import load_model
from memtrain.recipe import Recipe, load_recipe
from memtrain.rl.checkpoint import RunFolder
from memtrain.rl.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
STEPS = int(os.environ.get("MEMTRAIN_TINKER_STEPS", "2"))
KILLED = 6
"""The step in whose update the server is killed."""
COMPARED = 8
"""Completions a step whose log-probs are compared."""
CHANGED = [
    "engine=tinker",
    "model.lora_rank=8",
    "model.dtype=float32",
    "model.device=cpu",
    f"tinker.rows_multiple={MICRO_BATCH}",
    "priming.steps=4",
    "priming.documents_per_step=1",
    "tasks.probes=2",
    f"train.steps={STEPS}",
    "train.documents_per_step=2",
    "train.group_size=4",
    "train.lr=2e-4",
    "train.temperature=1.0",
    "train.grad_clip=0.0",
    "train.kl_coef=1e-3",
    "train.recall_cross_entropy=0.1",
    "train.known_answer_samples=1",
]


class Silent:
    """Nobody watches."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def metrics(self, step: int, values: dict[str, Any]) -> None: ...
    def sample(self, text: str, reward: float | None = None) -> None: ...


def float32_copy(folder: Path) -> Path:
    """The default model in float32: SkyRL trains adapters in the model's type, and small steps vanish in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = model_path("smollm2-135m")
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def trainer_of(engine: Any, recipe: Recipe, documents: Any, folder: Path) -> Trainer:
    folder.mkdir()
    return Trainer(engine, recipe, documents, RunFolder(folder), Silent())


async def take_over(engine: Any, local: TorchEngine, folder: Path) -> None:
    """Give the in-process engine the server's adapter."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    folder.mkdir()
    await engine.export(folder)
    set_peft_model_state_dict(local.loaded.model, load_file(folder / "adapter_model.safetensors"))
    local._drop_rollout()


async def agreement(engine: Any, local: TorchEngine, rows: Any) -> dict[str, float]:
    """Mean absolute gaps in nats on sampled tokens, all under the server's weights."""
    rows = [row for row in rows if row.loss == "policy"][:COMPARED]
    own = await asyncio.gather(*(local.score(row.prompt_ids, row.completion_ids) for row in rows))
    served = await asyncio.gather(*(engine.score(row.prompt_ids, row.completion_ids) for row in rows))

    def gap(left: Any, right: Any) -> float:
        return fmean(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))

    drawn = [row.logprobs for row in rows]
    return {"sampler_to_us": gap(drawn, own), "server_to_us": gap(served, own), "sampler_to_server": gap(drawn, served)}


def kill_and_start(server: SkyRL) -> None:
    server.kill()
    threading.Event().wait(5)
    server.start()


async def through_the_server(
    server: SkyRL, engine: Any, trainer: Trainer, local: TorchEngine, folder: Path
) -> list[dict[str, float]]:
    await trainer.prime()
    await engine.reset_optimiser()
    await engine.anchor()
    found = []
    for number in range(1, STEPS + 1):
        await engine.reseed(f"{trainer.recipe.seed}/grpo/{number}")
        experience = await trainer.collect(number)
        await take_over(engine, local, folder / f"adapter-{number}")
        gaps = await agreement(engine, local, experience.rows)
        killer = threading.Timer(20.0, kill_and_start, [server])
        if number == KILLED:
            killer.start()
        before = engine.model.generation
        metrics = await trainer.learn(experience, number)
        reloads = engine.model.generation - before
        found.append(experience.metrics | metrics | gaps | {"step": number, "reloads": reloads})
        print(json.dumps(found[-1]), flush=True)
    return found


async def in_process(local: TorchEngine, trainer: Trainer) -> list[dict[str, float]]:
    await trainer.prime()
    await local.reset_optimiser()
    await local.anchor()
    found = []
    for number in range(1, STEPS + 1):
        await local.reseed(f"{trainer.recipe.seed}/grpo/{number}")
        found.append(await trainer.grpo_step(number) | {"step": number})
        print(json.dumps(found[-1]), flush=True)
    return found


def test_the_demo_through_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    model = float32_copy(tmp_path / "smollm2-135m")
    recipe = load_recipe("demo-cpu", [*CHANGED, f"model.name={model}"])
    corpus_documents.build(recipe, tmp_path / "documents")
    documents = corpus_documents.open_documents(tmp_path / "documents", "train")
    settings = recipe.model
    with running(model, max_lora_adapters=3, sample_max_num_sequences=8) as server:
        tinker = recipe.tinker.model_copy(update={"base_url": server.url, "reduction": "sequence-mean"})
        engine = connect(model, settings, tinker, recipe.seed, recipe.train)
        twin, start = TorchEngine(load_model(model, settings)), TorchEngine(load_model(model, settings))
        tiny.run(take_over(engine, start, tmp_path / "start"))
        trainer = trainer_of(engine, recipe, documents, tmp_path / "server")
        served = tiny.run(through_the_server(server, engine, trainer, twin, tmp_path))
        engine.close()
    own = tiny.run(in_process(start, trainer_of(start, recipe, documents, tmp_path / "own")))
    if os.environ.get("MEMTRAIN_TINKER_RESULTS"):
        write(Path(os.environ["MEMTRAIN_TINKER_RESULTS"]), served, own)
    assert all(step[key] < 0.01 for step in served for key in ("sampler_to_us", "server_to_us"))
    assert all(step["reloads"] == (step["step"] == KILLED) for step in served)
    # Before anything was sampled both have read the same pairs: the same model, hence rewards of one distribution.
    assert abs(fmean(s["reward"] for s in served) - fmean(s["reward"] for s in own)) < 3.0


def write(folder: Path, served: list[dict[str, float]], own: list[dict[str, float]]) -> None:
    """Numbers and plots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"changed": CHANGED, "server": served, "in_process": own}
    (folder / "steps.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    figure, (rewards, gaps) = pyplot.subplots(1, 2, figsize=(11, 4))
    steps = [step["step"] for step in served]
    for name, key in (("reward", "reward"), ("recall part", "recall_reward")):
        style = "-" if key == "reward" else ":"
        rewards.plot(steps, [step[key] for step in served], style + "o", color="C0", label=f"server, {name}")
        rewards.plot(steps, [step[key] for step in own], style + "s", color="C1", label=f"in process, {name}")
    names = {"sampler_to_us": "sampler, in process", "server_to_us": "server, in process"}
    for key, name in names.items():
        gaps.plot(steps, [step[key] for step in served], "-o", label=name)
    for axes in (rewards, gaps):
        for step in served:
            if step["reloads"]:
                axes.axvline(step["step"], color="0.6", linestyle="--", linewidth=1)
                axes.annotate("kill -9", (step["step"], axes.get_ylim()[1]), va="top", color="0.4", fontsize=8)
        axes.set_xlabel("step")
        axes.legend(fontsize=8)
    rewards.set_ylabel("reward (nats gained)")
    gaps.set_ylabel("mean |gap| of log-probs (nats per token)")
    gaps.set_yscale("log")
    figure.tight_layout()
    figure.savefig(folder / "steps.png", dpi=150)
