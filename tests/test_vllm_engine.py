"""The engine that samples elsewhere and learns here: when weights travel, and in what form. vLLM itself is not needed:
a second PyTorch engine stands where it would."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from memtrain.engines.base import Engine, LossConfig, OptimiserConfig
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import end_tokens
from memtrain.engines.vllm.engine import VLLMEngine, with_vllm
from memtrain.engines.vllm.weights import adapter_rank, checkpoint_tensors
from memtrain.errors import UserError
from memtrain.settings import SamplerSettings
from memtrain.types import Completion, SamplingParams

PROMPT = tiny.ids(random.Random(0), 30)
PARAMS = SamplingParams(12, ignore_eos=True)
STRONG = OptimiserConfig(lr=0.05)


class OtherEngine:
    """A sampler that holds a model of its own and takes weights by the names of a checkpoint."""

    def __init__(self, engine: TorchEngine, full_weights: bool = True, context_tokens: int = 4096):
        self.engine, self.full_weights, self.context_tokens = engine, full_weights, context_tokens
        self.taken, self.closed, self.seeds = 0, False, list[int]()

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams, seed: int) -> Completion:
        await asyncio.sleep(0)
        self.seeds.append(seed)
        await self.engine.reseed(str(seed))
        return (await self.engine.sample(prompt_ids, params))[0]

    async def take(self, learner: Any) -> None:
        await asyncio.sleep(0)
        self.taken += 1
        self.engine._drop_rollout()
        own = self.engine.loaded.base.state_dict()
        with torch.no_grad():
            for name, tensor in checkpoint_tensors(learner.loaded, merge=True):
                own[name].copy_(tensor)

    def close(self) -> None:
        self.closed = True


def pair(lora_rank: int = 0, **options: Any) -> tuple[VLLMEngine, OtherEngine]:
    sampler = OtherEngine(tiny.engine(), **options)
    return VLLMEngine(tiny.engine(lora_rank=lora_rank), sampler), sampler


async def gap(engine: VLLMEngine) -> float:
    """Largest distance between what the sampler says of its tokens and what the learner says."""
    (drawn,) = await engine.sample(PROMPT, PARAMS)
    own = await engine.score(PROMPT, drawn.token_ids)
    return max(abs(a - b) for a, b in zip(own, drawn.logprobs, strict=True))


def test_it_is_an_engine() -> None:
    engine, sampler = pair()
    assert isinstance(engine, Engine)
    assert engine.tokenizer is engine.learner.tokenizer
    assert engine.loaded is engine.learner.loaded
    engine.close()
    assert sampler.closed


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_sampler_follows_every_update_and_takes_weights_only_then(lora_rank: int) -> None:
    engine, sampler = pair(lora_rank)

    async def go() -> None:
        before = await engine.sample(PROMPT, PARAMS, 2)
        assert await gap(engine) < 1e-4
        assert sampler.taken == 1
        for _ in range(3):  # updates in a row travel once
            await engine.update(tiny.joint_rows(), LossConfig(kl_coef=0.0), STRONG)
        assert sampler.taken == 1
        moved = await engine.score(PROMPT, before[0].token_ids)
        assert max(abs(a - b) for a, b in zip(moved, before[0].logprobs, strict=True)) > 0.5
        assert await gap(engine) < 1e-4
        assert sampler.taken == 2

    tiny.run(go())


def test_whoever_asks_while_weights_travel_waits_for_them() -> None:
    engine, sampler = pair()

    async def go() -> None:
        await engine.update(tiny.joint_rows(), LossConfig(kl_coef=0.0), STRONG)
        drawn = await asyncio.gather(*(engine.sample(PROMPT, PARAMS, 2) for _ in range(5)))
        assert sampler.taken == 1
        for completion in (c for pair in drawn for c in pair):
            own = await engine.score(PROMPT, completion.token_ids)
            assert own == pytest.approx(completion.logprobs, abs=1e-4)

    tiny.run(go())
    assert len(set(sampler.seeds)) == 11  # one for the check of the model
    assert engine.tokens_sampled == 120


def test_draws_come_from_the_seed_and_survive_a_checkpoint(tmp_path: Path) -> None:
    engine, _ = pair()

    async def go() -> None:
        await engine.reseed("step 1")
        first = await engine.sample(PROMPT, PARAMS, 2)
        await engine.save(tmp_path)
        second = await engine.sample(PROMPT, PARAMS, 2)
        assert first != second
        await engine.reseed("step 1")
        assert await engine.sample(PROMPT, PARAMS, 2) == first
        other, other_sampler = pair()
        await other.load(tmp_path)
        assert await other.sample(PROMPT, PARAMS, 2) == second
        assert other_sampler.taken == 1

    tiny.run(go())


def test_another_model_behind_the_sampler_is_noticed(tmp_path: Path) -> None:
    class Stubborn(OtherEngine):
        async def take(self, learner: Any) -> None: ...

    other = tiny.engine(tiny.save_model(tmp_path / "other", seed=5))
    engine = VLLMEngine(tiny.engine(), Stubborn(other))
    with pytest.raises(UserError, match="another model"):
        tiny.run(engine.sample(PROMPT, PARAMS))
    same = VLLMEngine(tiny.engine(), Stubborn(tiny.engine()))
    assert len(tiny.run(same.sample(PROMPT, PARAMS))) == 1


def test_a_server_cannot_follow_full_weights_and_says_so_before_the_update() -> None:
    engine, _ = pair(full_weights=False)
    before = {name: p.clone() for name, p in engine.loaded.model.named_parameters()}
    with pytest.raises(UserError, match=r"model\.lora_rank.*sampler\.kind"):
        tiny.run(engine.update(tiny.joint_rows(), LossConfig(), STRONG))
    assert all(torch.equal(p, before[name]) for name, p in engine.loaded.model.named_parameters())
    pair(lora_rank=2, full_weights=False)[0].check_trainable()


def test_what_does_not_fit_the_samplers_window_is_refused() -> None:
    engine, _ = pair(context_tokens=40)
    assert engine.context_tokens == 40
    with pytest.raises(UserError, match=r"42 tokens.*sampler\.context_tokens"):
        tiny.run(engine.sample(PROMPT, SamplingParams(12)))


def test_progress_counts_completions() -> None:
    engine, _ = pair()
    seen: list[tuple[str, int, int]] = []
    engine.on_progress = lambda *report: seen.append(report)

    async def go() -> None:
        await asyncio.gather(*(engine.sample(PROMPT, PARAMS) for _ in range(4)))

    tiny.run(go())
    mine = [report for report in seen if report[2] == 4 and report[0] == "sampling"]
    assert mine[-1] == ("sampling", 4, 4)


# ---- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "gpt-oss", "phi"])
def test_weights_go_by_the_names_of_a_checkpoint(family: str, tmp_path: Path) -> None:
    """save_pretrained says what a checkpoint of this family holds; a tied head stands in it once."""
    loaded = tiny.engine(family).loaded
    loaded.base.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    given = dict(checkpoint_tensors(loaded, merge=False))
    assert given.keys() == stored.keys()
    assert all(torch.equal(given[name], stored[name]) for name in stored)


def test_an_adapter_is_left_out_or_merged() -> None:
    engine = tiny.engine("qwen3", lora_rank=4)
    plain = dict(checkpoint_tensors(tiny.engine("qwen3").loaded, merge=False))
    tiny.run(engine.update(tiny.joint_rows(), LossConfig(kl_coef=0.0), STRONG))
    base = dict(checkpoint_tensors(engine.loaded, merge=False))
    assert base.keys() == plain.keys()
    assert all(torch.equal(base[name], plain[name]) for name in plain)
    merged = dict(checkpoint_tensors(engine.loaded, merge=True))
    wanted = engine.loaded.model.merge_and_unload().state_dict()  # peft's own
    assert merged.keys() == plain.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=1e-5)
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], plain["model.layers.0.mlp.up_proj.weight"])


def test_rank_and_end_tokens_are_read_from_the_model() -> None:
    engine = tiny.engine(lora_rank=6)
    assert adapter_rank(engine.loaded.model) == 6
    end = engine.tokenizer.eos_token_id
    assert end_tokens(engine.loaded) == [end]
    engine.loaded.base.generation_config.eos_token_id = [end, 3]
    assert end_tokens(engine.loaded) == sorted([end, 3])


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError) as error:
        with_vllm(tiny.engine(), SamplerSettings(kind="vllm"))
    assert 'pip install "memtrain[vllm]"' in str(error.value)
    assert "sampler.kind" in str(error.value)
    assert "\n" not in str(error.value)
