"""What an engine keeps: optimiser, master weights, reference, random state, adapters, exports."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from memtrain.engines.base import Engine, LossConfig, OptimiserConfig
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import load_model
from memtrain.errors import UserError
from memtrain.recipe import ModelSettings
from memtrain.types import Row, SamplingParams

OPTIMISER = OptimiserConfig(lr=1e-2)
LOSS = LossConfig(kl_coef=0.1, cross_entropy_coef=0.5)
PROMPT = tiny.ids(random.Random(0), 30)
KINDS: list[dict[str, Any]] = [{}, {"dtype": "bfloat16"}, {"lora_rank": 4}, {"lora_rank": 4, "dtype": "bfloat16"}]


def weights(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.loaded.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps(engine: TorchEngine, numbers: Iterator[int] | range) -> list[Any]:
    """Train and sample; everything that comes out, to be compared bit by bit."""

    async def go() -> list[Any]:
        out: list[Any] = []
        for number in numbers:
            metrics = await engine.update(tiny.joint_rows(number), LOSS, OPTIMISER)
            drawn = await engine.sample(PROMPT, SamplingParams(5), n=2)
            out.append(({k: v for k, v in metrics.items() if k != "update_seconds"}, drawn))
        return out

    return tiny.run(go())


def saved(engine: TorchEngine, folder: Path) -> Path:
    folder.mkdir()
    tiny.run(engine.save(folder))
    return folder


def test_it_is_an_engine() -> None:
    assert isinstance(tiny.engine(), Engine)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_loaded_engine_continues_to_the_same_numbers(kind: dict[str, Any], tmp_path: Path) -> None:
    unbroken = tiny.engine(**kind)
    tiny.run(unbroken.anchor())
    steps(unbroken, range(2))
    folder = saved(unbroken, tmp_path / "state")
    wanted = steps(unbroken, range(2, 4))
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}  # nothing pickled

    resumed = tiny.engine(**kind, seed=99)
    tiny.run(resumed.load(folder))
    assert steps(resumed, range(2, 4)) == wanted
    assert same(weights(resumed), weights(unbroken))
    assert tiny.run(resumed.score(PROMPT, (9, 10), "reference")) == tiny.run(
        unbroken.score(PROMPT, (9, 10), "reference")
    )


def test_what_is_saved_before_any_step_can_be_loaded(tmp_path: Path) -> None:
    fresh = tiny.engine()
    folder = saved(fresh, tmp_path / "state")
    wanted = steps(fresh, range(2))
    trained = tiny.engine(seed=3)
    steps(trained, range(5, 7))  # its moments must not survive the load
    tiny.run(trained.load(folder))
    assert steps(trained, range(2)) == wanted


def test_saving_changes_nothing(tmp_path: Path) -> None:
    engine, other = tiny.engine(), tiny.engine()
    assert steps(engine, range(1)) == steps(other, range(1))
    saved(engine, tmp_path / "state")
    assert steps(engine, range(1, 3)) == steps(other, range(1, 3))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_looking_through_the_reference_leaves_the_policy_untouched(kind: dict[str, Any]) -> None:
    engine = tiny.engine(**kind)
    completion = (9, 10, 11)

    async def go() -> None:
        start = await engine.score(PROMPT, completion)
        assert await engine.score(PROMPT, completion, "reference") == start  # untrained: its own reference
        await engine.anchor()
        await engine.update(tiny.joint_rows(0), LOSS, OPTIMISER)
        before = weights(engine)
        policy, reference = await asyncio.gather(
            engine.score(PROMPT, completion), engine.score(PROMPT, completion, "reference")
        )
        assert same(weights(engine), before)
        assert reference == start  # still the start model
        assert policy != start
        await engine.anchor()
        assert await engine.score(PROMPT, completion, "reference") == policy

    tiny.run(go())


def test_a_failure_in_the_reference_pass_gives_the_policy_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny.engine()
    tiny.run(engine.anchor())
    steps(engine, range(1))
    before = weights(engine)
    monkeypatch.setattr(engine, "_logprobs", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny.run(engine.score(PROMPT, (9,), "reference"))
    assert same(weights(engine), before)


def test_small_steps_add_up_in_master_weights() -> None:
    """A step of 1e-6 is lost in bfloat16; 200 of them are not, because they are summed in float32."""
    engine = tiny.engine(dtype="bfloat16")
    rows = [tiny.row(PROMPT, (9, 10, 11), 0.0, loss="cross_entropy")]
    exact = tiny.engine(dtype="float32")
    config, small = LossConfig(kl_coef=0.0), OptimiserConfig(lr=1e-6, weight_decay=0.0)
    before = weights(engine)
    start = {name: m.detach().clone() for name, m in engine._adamw().masters.items()}

    async def go(which: TorchEngine) -> None:
        for _ in range(200):
            await which.update(rows, config, small)

    tiny.run(go(engine))
    tiny.run(go(exact))
    masters = engine._adamw().masters
    moved = {name: (masters[name] - start[name]).detach() for name in start}
    begun = weights(tiny.engine(dtype="float32"))
    wanted = {name: p.detach() - begun[name] for name, p in exact.loaded.model.named_parameters()}
    # Adam moves a weight by about lr a step while its gradient keeps its sign.
    sizes = torch.cat([change.flatten().abs() for change in moved.values()])
    assert float(sizes[sizes > 0].median()) == pytest.approx(2e-4, rel=0.1)
    flat = [torch.cat([change[name].flatten() for name in start]) for change in (moved, wanted)]
    assert float(torch.nn.functional.cosine_similarity(*flat, dim=0)) > 0.9
    after = weights(engine)
    assert not same(before, after)  # the rounded copy has followed where the sum is large enough
    for name, parameter in after.items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, masters[name].to(torch.bfloat16))
    # Without masters: not one weight above 1e-3 would have moved.
    one = torch.tensor(0.5, dtype=torch.bfloat16)
    assert one - 1e-6 == one


def test_a_norm_that_is_not_finite_skips_the_step() -> None:
    engine = tiny.engine()
    steps(engine, range(1))
    before, state = weights(engine), engine._adamw().state_tensors()
    state = {key: tensor.clone() for key, tensor in state.items()}
    bad: list[Row] = [tiny.row(PROMPT, (9, 10), float("inf"))]
    metrics = tiny.run(engine.update(bad, LossConfig(kl_coef=0.0), OPTIMISER))
    assert not metrics["grad_norm"] < float("inf")
    assert same(weights(engine), before)
    assert all(torch.equal(state[key], tensor) for key, tensor in engine._adamw().state_tensors().items())
    healthy = tiny.run(engine.update(tiny.joint_rows(1), LOSS, OPTIMISER))
    assert 0 < healthy["grad_norm"] < float("inf")
    assert all(torch.isfinite(tensor).all() for tensor in weights(engine).values())


def test_gradients_are_clipped_to_the_norm_asked_for() -> None:
    """The same gradient, clipped or not, is a different first moment by the ratio of the norms."""
    moments = []
    for clip in (0.0, 1e-3):
        engine = tiny.engine()
        metrics = tiny.run(engine.update(tiny.joint_rows(0), LossConfig(kl_coef=0.0), OptimiserConfig(grad_clip=clip)))
        state = engine._adamw().state_tensors()
        moments.append(torch.cat([v.flatten() for key, v in sorted(state.items()) if key.startswith("exp_avg/")]))
    assert metrics["grad_norm"] > 1  # reported as it was before clipping
    assert float(moments[1].norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)  # (1 - beta1) times the clip
    assert float(moments[0].norm()) == pytest.approx(0.1 * metrics["grad_norm"], rel=1e-3)


def test_an_interrupted_update_leaves_no_gradient_behind() -> None:
    rows = tiny.joint_rows(0)
    engine, other = tiny.engine(micro_batch_tokens=100), tiny.engine(micro_batch_tokens=100)
    before = weights(engine)

    def interrupt(what: str, done: int, total: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    engine.on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        tiny.run(engine.update(rows, LOSS, OPTIMISER))
    assert same(weights(engine), before)
    engine.on_progress = None
    assert steps(engine, range(1)) == steps(other, range(1))
    assert same(weights(engine), weights(other))


# ---- exports and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_an_export_is_a_transformers_folder(family: str, tmp_path: Path) -> None:
    engine = tiny.engine(family)
    steps(engine, range(1))
    tiny.run(engine.export(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.config._attn_implementation != "memtrain"  # others do not know our attention
    assert tokenizer.chat_template == tiny.tokenizer().chat_template
    assert tokenizer.encode("The quick") == tiny.tokenizer().encode("The quick")
    whole = torch.tensor([(*PROMPT, 9, 10)])
    with torch.no_grad():
        logprobs = model.eval()(whole).logits[0].log_softmax(-1)
    wanted = [float(logprobs[29, 9]), float(logprobs[30, 10])]
    assert tiny.run(engine.score(PROMPT, (9, 10))) == pytest.approx(wanted, abs=1e-4)
    assert model.generation_config.eos_token_id is not None
    assert getattr(model.config, "use_cache", True)  # or whoever serves it decodes without a cache
    again = tiny.engine(tmp_path)
    assert same(weights(again), weights(engine))


def broken(folder: Path, how: str) -> None:
    state = folder / "optimiser.safetensors"
    if how == "no state":
        (folder / "engine.json").unlink()
    elif how == "no weights":
        state.unlink()
    elif how == "cut json":
        (folder / "engine.json").write_text("{")
    elif how == "not an object":
        (folder / "engine.json").write_text("[]")
    elif how == "cut weights":
        state.write_bytes(state.read_bytes()[:1000])
    elif how == "empty weights":
        state.write_bytes(b"")
    elif how == "a weight missing":
        tensors = load_file(state)
        tensors.pop(next(name for name in tensors if name.startswith("master/")))
        save_file(tensors, state)
    elif how == "a moment missing":
        tensors = load_file(state)
        tensors.pop(next(name for name in tensors if name.startswith("exp_avg_sq/")))
        save_file(tensors, state)
    elif how == "bad random state":
        file = folder / "engine.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"generator": "00ff"}))


@pytest.mark.parametrize(
    "how",
    [
        "no state",
        "no weights",
        "cut json",
        "not an object",
        "cut weights",
        "empty weights",
        "a weight missing",
        "a moment missing",
        "bad random state",
    ],
)
def test_a_broken_checkpoint_is_named(how: str, tmp_path: Path) -> None:
    engine = tiny.engine()
    steps(engine, range(1))
    folder = saved(engine, tmp_path / "grpo-000001")
    broken(folder, how)
    with pytest.raises(UserError, match=r"grpo-000001 .*resume with the recipe"):
        tiny.run(tiny.engine().load(folder))


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    folder = saved(tiny.engine("llama"), tmp_path / "state")
    for other in ("qwen3", "gemma3"):
        with pytest.raises(UserError, match="does not fit this model"):
            tiny.run(tiny.engine(other).load(folder))


def test_evaluation_pays_for_no_optimiser() -> None:
    engine = TorchEngine(load_model(tiny.model_folder(), ModelSettings(dtype="bfloat16", device="cpu")))
    tiny.run(engine.score(PROMPT, (9,)))
    tiny.run(engine.sample(PROMPT, SamplingParams(2)))
    assert engine._optimiser is None
