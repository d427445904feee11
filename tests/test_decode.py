"""Decoding over shared prefixes: who shares what, attention against float64 softmax, who is done makes room."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_sampling import GREEDY, generated, prompts_of, sample_all

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.torch import sampling
from memtrain.engines.torch.decode_attention import DecodePlan, LayerCache, decode_attention, layout
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import load_model
from memtrain.engines.torch.prefill import Unit, plan_units, rows_at_once
from memtrain.engines.torch.rollout_model import RolloutModel
from memtrain.recipe import ModelSettings
from memtrain.types import SamplingParams

# ---- who shares what ------------------------------------------------------------------------------------------------


def ids(rng: random.Random, n: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1000) for _ in range(n))


def kept_tokens(units: Sequence[Unit], bodies: Sequence[Sequence[int]]) -> int:
    return sum(u.shared + sum(len(bodies[n]) - u.shared for n in u.members) for u in units)


def test_groups_keep_their_chunk_and_not_just_the_instructions() -> None:
    rng = random.Random(0)
    instructions = ids(rng, 40)
    chunks = [instructions + ids(rng, 300) for _ in range(3)]
    bodies = [chunk + ids(rng, 30) for chunk in chunks for _ in range(8)]
    assert plan_units(bodies, 64, 16) == [Unit(tuple(range(8 * g, 8 * g + 8)), 340) for g in range(3)]


def test_samples_of_one_prompt_keep_the_whole_prompt() -> None:
    """Recall: one masked chunk for all, a memory for every eight answers."""
    rng = random.Random(0)
    chunk = ids(rng, 100)
    bodies = [memory for memory in (chunk + ids(rng, 60) for _ in range(4)) for _ in range(8)]
    assert plan_units(bodies, 64, 16) == [Unit(tuple(range(8 * g, 8 * g + 8)), 160) for g in range(4)]
    assert [len(unit.members) for unit in plan_units(bodies, 5, 16)] == [5, 3] * 4


def test_prompts_of_one_token_wait_too() -> None:
    assert plan_units([(), (), ()], 2, 16) == [Unit((n,), 0) for n in range(3)]


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_units_hold_every_prompt_once_and_share_what_is_common(seed: int, most: int, min_shared: int) -> None:
    rng = random.Random(seed)
    stems = [tuple(rng.randrange(3) for _ in range(rng.randrange(12))) for _ in range(3)]
    bodies = [rng.choice(stems) + tuple(rng.randrange(3) for _ in range(rng.randrange(9))) for _ in range(14)]
    units = plan_units(bodies, most, min_shared)
    assert sorted(n for unit in units for n in unit.members) == list(range(14))
    for unit in units:
        assert 1 <= len(unit.members) <= most
        assert len({bodies[n][: unit.shared] for n in unit.members}) == 1
        assert all(len(bodies[n]) >= unit.shared for n in unit.members)
    assert kept_tokens(plan_units(bodies, 99, min_shared), bodies) <= sum(map(len, bodies))
    # However units fill the slots, there is a row for each.
    for _ in range(20):
        some = [unit for unit in units if rng.random() < 0.5]
        if sum(len(unit.members) for unit in some) <= 10:
            assert sum(unit.shared > 0 for unit in some) <= rows_at_once(units, 10)


# ---- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["plain", "window", "softcap", "sinks"])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)])
def test_decode_attention_is_softmax_attention(extra: str, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n_heads, kv_heads = heads
    rows, size, prefix_room, own_room = [1, 0, -1, 1, 0], 8, 7, 6
    prefix_lengths, own_lengths = [7, 4, 5], [3, 0, 2, 1, 4]  # the third prefix is nobody's
    slots = len(rows)
    cache = LayerCache(
        normal(3, kv_heads, size, prefix_room),
        normal(3, kv_heads, prefix_room, size),
        normal(slots, kv_heads, size, own_room),
        normal(slots, kv_heads, own_room, size),
    )
    q, k, v = normal(slots, n_heads, 1, size) * 3, normal(slots, kv_heads, 1, size), normal(slots, kv_heads, 1, size)
    window, softcap = (5 if extra == "window" else None), (2.0 if extra == "softcap" else None)
    sinks = normal(n_heads) if extra == "sinks" else None
    before = LayerCache(*(tensor.clone() for tensor in cache))
    plan = DecodePlan(
        {0: cache}, torch.tensor(own_lengths), torch.tensor(prefix_lengths), *layout(rows, 3, torch.device("cpu"))
    )
    plan.begin_step(max(own_lengths) + 1)
    out = decode_attention(plan, 0, q, k, v, 0.4, window, softcap, sinks)
    assert out.shape == (slots, 1, n_heads, size)
    for slot, row in enumerate(rows):
        length, known = own_lengths[slot], prefix_lengths[row] if row >= 0 else 0
        for head in range(n_heads):
            kv = head // (n_heads // kv_heads)
            keys = [before.prefix_k[row, kv, :, :known].T, before.own_k[slot, kv, :, :length].T, k[slot, kv]]
            values = [before.prefix_v[row, kv, :known], before.own_v[slot, kv, :length], v[slot, kv]]
            scores = torch.cat(keys) @ q[slot, head, 0] * 0.4
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            if window is not None:
                scores[: max(0, len(scores) - window)] = -torch.inf
            if sinks is not None:
                weights = torch.cat([scores, sinks[head : head + 1]]).softmax(0)[:-1]
            else:
                weights = scores.softmax(0)
            torch.testing.assert_close(out[slot, 0, head], weights @ torch.cat(values), rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.own_v[0, :, 3], v[0, :, 0])
    assert torch.equal(cache.own_v[0, :, :3], before.own_v[0, :, :3])


# ---- joining and leaving --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2-window", "gpt2"])
@pytest.mark.parametrize("slots", [1, 3, 6])
def test_who_joins_late_says_the_same(family: str, slots: int) -> None:
    prompts = prompts_of(8)
    lengths = [1 + (7 * n) % 11 for n in range(len(prompts))]
    engine = tiny.engine(family, max_sequences=slots)
    found = sample_all(engine, prompts, *(SamplingParams(n, temperature=0.0) for n in lengths))
    wanted = generated(family, prompts, max(lengths))
    assert [c.token_ids for c in found] == [w[:n] for w, n in zip(wanted, lengths, strict=True)]


def test_finished_sequences_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are those of a queue before the slots, not of one batch after the other; idle slots are left out."""
    sizes = []
    step = sampling._Decoder.step

    def counted(self: sampling._Decoder) -> int:
        sizes.append(len(self.running))
        return step(self)

    monkeypatch.setattr(sampling._Decoder, "step", counted)
    rng = random.Random(0)
    prompts = [tiny.ids(rng, 20) for _ in range(8)]
    lengths = [12, 2, 2, 2, 2, 2, 2, 2]
    found = sample_all(tiny.engine(max_sequences=2), prompts, *(SamplingParams(n, 0.0) for n in lengths))
    assert [len(c.token_ids) for c in found] == lengths
    assert sizes == [2] * 12 + [1] * 2  # in batches of two it would take 12 + 2 + 2 + 2


def test_stragglers_do_not_hold_up_the_queue() -> None:
    """Every group has one member that goes on for long: its prefix stays while others take its comrades' places."""
    rng = random.Random(0)
    prompts = [p for p in (tiny.ids(rng, 20) for _ in range(6)) for _ in range(3)]
    lengths = [9 if n % 3 == 0 else 1 + n % 2 for n in range(len(prompts))]
    found = sample_all(tiny.engine(max_sequences=6), prompts, *(SamplingParams(n, 0.0) for n in lengths))
    wanted = generated("llama", prompts, max(lengths))
    assert [c.token_ids for c in found] == [w[:n] for w, n in zip(wanted, lengths, strict=True)]


@pytest.mark.parametrize("slots", [2, 5])
def test_with_a_worker_thread_episodes_go_on_by_themselves(slots: int) -> None:
    """Episodes of unequal length that ask again and again: the same answers as one by one, and nobody is lost."""

    async def episode(engine: TorchEngine, prompt: tuple[int, ...], turns: int) -> list[tuple[int, ...]]:
        said = []
        for turn in range(turns):
            (completion,) = await engine.sample(prompt, SamplingParams(3 + turn, temperature=0.0))
            said.append(completion.token_ids)
            prompt = (*prompt[:12], *completion.token_ids, *prompt[12:])
            scores = await engine.score(prompt, completion.token_ids)
            assert len(scores) == len(completion.token_ids)
        return said

    async def all_of_them(engine: TorchEngine) -> list[list[tuple[int, ...]]]:
        rng = random.Random(3)
        stem = tiny.ids(rng, 25)
        prompts = [(stem if n % 2 else ()) + tiny.ids(rng, 5 + n) for n in range(9)]
        return await asyncio.gather(*(episode(engine, p, 1 + n % 4) for n, p in enumerate(prompts)))

    wanted = tiny.run(all_of_them(tiny.engine(max_sequences=64)))
    assert tiny.run(all_of_them(tiny.engine(max_sequences=slots, overlap=True))) == wanted


def test_end_tokens_can_be_ignored() -> None:
    engine, prompts = tiny.engine(), prompts_of(5)
    free = sample_all(engine, prompts, GREEDY)
    engine.loaded.base.generation_config.eos_token_id = [free[0].token_ids[4]]
    deaf = SamplingParams(GREEDY.max_tokens, temperature=0.0, ignore_eos=True)
    assert sample_all(engine, prompts, deaf) == free
    assert sample_all(engine, prompts, GREEDY) != free


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_cuda_graphs_replay_what_the_steps_compute(family: str, recwarn: pytest.WarningsRecorder) -> None:
    prompts = prompts_of(9)
    settings = ModelSettings(name=str(tiny.model_folder(family)), dtype="float32", device="cuda")
    engine = TorchEngine(load_model(tiny.model_folder(family), settings), max_sequences=6)
    params = SamplingParams(90, temperature=0.0)  # past a border of LENGTH_STEP: several graphs
    found = sample_all(engine, prompts, params)
    assert [c.token_ids for c in found] == generated(family, prompts, params.max_tokens)
    assert not [str(w.message) for w in recwarn if "CUDA graphs" in str(w.message)]


# ---- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rollout_weights_are_the_policys_own(lora: int, dtype: str) -> None:
    loaded = tiny.engine(dtype=dtype, lora_rank=lora).loaded
    model, rollout = loaded.model, RolloutModel(loaded)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # an adapter starts at zero
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tokens = torch.tensor([tiny.ids(random.Random(0), 50)])
    with torch.no_grad():
        wanted = model(tokens, use_cache=False).logits
        got = rollout.ready().model(tokens, use_cache=False).logits
        again = model(tokens, use_cache=False).logits
    if lora:  # merged weights are rounded once more
        gap = float((got.float() - wanted.float()).norm() / wanted.float().norm())
        assert gap < (1e-5 if dtype == "float32" else 0.03)
    else:
        assert torch.equal(got, wanted)
    assert torch.equal(again, wanted)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    rollout.drop()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("lora_A" in name) if lora else ("q_proj" in name):
                parameter.mul_(3)
        changed = model(tokens, use_cache=False).logits
        got = rollout.ready().model(tokens, use_cache=False).logits
    assert not torch.equal(changed, wanted)
    assert float((got.float() - changed.float()).norm() / changed.float().norm()) < (
        1e-5 if dtype == "float32" else 0.03
    )


@pytest.mark.parametrize("lora", [0, 4])
def test_the_sampler_follows_every_update(lora: int) -> None:
    engine = tiny.engine(dtype="bfloat16", lora_rank=lora)
    prompt = tiny.ids(random.Random(0), 30)
    row = tiny.row(prompt, (7,) * 8, loss="cross_entropy")

    async def learn() -> None:
        before = await engine.sample(prompt, GREEDY)
        for _ in range(12):
            await engine.update([row], LossConfig(kl_coef=0.0), OptimiserConfig(lr=0.02))
            (after,) = await engine.sample(prompt, GREEDY)
            again = await engine.score(prompt, after.token_ids)
            assert all(math.isclose(a, b, abs_tol=0.15) for a, b in zip(after.logprobs, again, strict=True))
        assert before[0].token_ids != after.token_ids
        assert after.token_ids[0] == 7

    tiny.run(learn())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_layers_sample_from_the_policy(dtype: str, recwarn: pytest.WarningsRecorder) -> None:
    prompts = prompts_of(6)
    engine = tiny.engine(dtype=dtype, compile_sampler=True)
    found = sample_all(engine, prompts, GREEDY)
    assert not [str(w.message) for w in recwarn if "without torch.compile" in str(w.message)]
    if dtype == "float32":
        assert [c.token_ids for c in found] == [c.token_ids for c in sample_all(tiny.engine(), prompts, GREEDY)]

    async def scores() -> None:  # by the layers as they were written
        gaps = list[float]()
        for prompt, completion in zip(prompts, found, strict=True):
            wanted = await engine.score(prompt, completion.token_ids)
            gaps += [abs(a - b) for a, b in zip(completion.logprobs, wanted, strict=True)]
        assert sum(gaps) / len(gaps) < (1e-5 if dtype == "float32" else 0.05)

    asyncio.run(scores())


def test_layers_that_cannot_be_compiled_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(layer: torch.nn.Module, **_: object) -> None:
        def call(*_: object, **__: object) -> None:
            raise RuntimeError("no C++ compiler here")

        layer._compiled_call_impl = call

    prompts = prompts_of(3)
    wanted = sample_all(tiny.engine(), prompts, GREEDY)
    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    with pytest.warns(UserWarning, match="no C.. compiler here"):
        found = sample_all(tiny.engine(compile_sampler=True), prompts, GREEDY)
    assert found == wanted
