"""Rollouts over shared prefixes against transformers' own generation, and the draw against its distribution."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from memtrain.engines.torch.drawing import BLOCK, DrawPlan, draw, uniform
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.forward import CompletionBatch
from memtrain.engines.torch.sampling import StopMatcher
from memtrain.errors import UserError
from memtrain.types import Completion, SamplingParams

GREEDY = SamplingParams(10, temperature=0.0)


def prompts_of(seed: int = 0) -> list[tuple[int, ...]]:
    """Groups of unequal sizes and lengths, a prompt that is another's beginning, single prompts, one-token prompts."""
    rng = random.Random(seed)
    long, short = tiny.ids(rng, 45), tiny.ids(rng, 20)
    prompts = [long + tiny.ids(rng, n) for n in (1, 4, 9, 9, 23)]
    prompts += [short + tiny.ids(rng, n) for n in (2, 30)]
    prompts += [
        short,
        short + tiny.ids(rng, 1),
        tiny.ids(rng, 33),
        tiny.ids(rng, 1),
        tiny.ids(rng, 1),
        tiny.ids(rng, 2),
    ]
    prompts += [long + prompts[2][45:], long]
    rng.shuffle(prompts)
    return prompts


def sample_all(engine: TorchEngine, prompts: Sequence[tuple[int, ...]], *params: SamplingParams) -> list[Completion]:
    """One completion a prompt, all in one batch; one set of parameters for all or one each."""
    each = params if len(params) == len(prompts) else params * len(prompts)

    async def together() -> list[Completion]:
        found = await asyncio.gather(*(engine.sample(p, s) for p, s in zip(prompts, each, strict=True)))
        return [completion for one in found for completion in one]

    return tiny.run(together())


def generated(family: str | Path, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[tuple[int, ...]]:
    """What transformers generates greedily, one prompt at a time."""
    folder = family if isinstance(family, Path) else tiny.model_folder(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    options = {"do_sample": False, "max_new_tokens": max_tokens, "use_cache": True}
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        out.append(tuple(whole[0, len(prompt) :].tolist()))
    return out


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_is_transformers_generate(family: str) -> None:
    prompts = prompts_of()
    completions = sample_all(tiny.engine(family), prompts, GREEDY)
    assert [c.token_ids for c in completions] == generated(family, prompts, GREEDY.max_tokens)
    assert len({c.token_ids for c in completions}) > len(prompts) // 2  # different prompts say different things


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_reported_logprobs_are_those_of_score(family: str) -> None:
    engine, prompts = tiny.engine(family), prompts_of(1)

    async def both() -> None:
        params = SamplingParams(9, temperature=1.0)
        found = await asyncio.gather(*(engine.sample(prompt, params, n=2) for prompt in prompts))
        for prompt, pair in zip(prompts, found, strict=True):
            for completion in pair:
                again = await engine.score(prompt, completion.token_ids)
                assert completion.logprobs == pytest.approx(again, abs=1e-4)

    tiny.run(both())


def test_logprobs_are_those_of_the_sampling_distribution() -> None:
    engine, prompts = tiny.engine("qwen3"), prompts_of(2)
    temperatures = [0.0, 0.5, 1.7]
    params = [SamplingParams(6, temperature=temperatures[i % 3]) for i in range(len(prompts))]
    for prompt, p, completion in zip(prompts, params, sample_all(engine, prompts, *params), strict=True):
        with torch.no_grad():
            packed = CompletionBatch.of([prompt], [completion.token_ids])
            again = engine._logprobs(packed, p.temperature or 1.0).tolist()
        assert completion.logprobs == pytest.approx(again, abs=1e-4)


@pytest.mark.parametrize("how", ["small batches", "small prefills"])
def test_how_the_work_is_cut_changes_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(3)
    wanted = [c.token_ids for c in sample_all(tiny.engine(), prompts, GREEDY)]
    if how == "small prefills":
        monkeypatch.setattr("memtrain.engines.torch.prefill.PREFILL_TOKENS", 60)
    engine = tiny.engine(max_sequences=4 if how == "small batches" else None)
    assert [c.token_ids for c in sample_all(engine, prompts, GREEDY)] == wanted


def test_bfloat16_samples_what_it_scores() -> None:
    """Rounding differs between decoding and scoring; on average it must not."""
    engine, prompts = tiny.engine("llama", dtype="bfloat16"), prompts_of(4)
    completions = sample_all(engine, prompts, SamplingParams(20))
    gaps = []
    for prompt, completion in zip(prompts, completions, strict=True):
        again = tiny.run(engine.score(prompt, completion.token_ids))
        gaps += [a - b for a, b in zip(completion.logprobs, again, strict=True)]
    assert abs(sum(gaps) / len(gaps)) < 0.02
    assert max(map(abs, gaps)) < 0.5


def test_every_request_has_its_own_length() -> None:
    """Also where absolute positions end: a short request that is done must not run over the table for a long one."""
    folder = tiny.model_folder("gpt2").parent / "gpt2-short"
    tiny.save_model(folder, "gpt2", n_positions=40)
    engine = tiny.engine(folder)
    assert engine.context_tokens == 40
    rng = random.Random(0)
    prompts = [tiny.ids(rng, 36), tiny.ids(rng, 4)]
    long, short = sample_all(engine, prompts, *(SamplingParams(40 - len(p), temperature=0.0) for p in prompts))
    assert [len(long.token_ids), len(short.token_ids)] == [4, 36]
    assert [long.token_ids, short.token_ids] == [generated(folder, [p], 40 - len(p))[0] for p in prompts]
    assert long.stop_reason == short.stop_reason == "length"


@pytest.mark.parametrize("family", ["llama", "qwen2-window"])
def test_samples_of_one_prompt_differ_and_reseeding_repeats_them(family: str) -> None:
    engine = tiny.engine(family)
    prompt = tiny.ids(random.Random(0), 40)

    def drawn(seed: str | None) -> list[tuple[int, ...]]:
        async def together() -> list[Completion]:
            if seed is not None:
                await engine.reseed(seed)
            return await engine.sample(prompt, SamplingParams(8), n=5)

        return [completion.token_ids for completion in tiny.run(together())]

    first, onwards = drawn("a"), drawn(None)
    assert len(set(first)) == 5
    assert onwards != first
    assert drawn("b") != first
    assert drawn("a") == first
    assert drawn(None) == onwards


def test_end_tokens_end_a_completion() -> None:
    engine, prompts = tiny.engine(), prompts_of(5)
    free = sample_all(engine, prompts, GREEDY)
    end = free[0].token_ids[4]  # what the model happens to say fifth becomes an end token
    engine.loaded.base.generation_config.eos_token_id = [end, engine.tokenizer.eos_token_id]
    for before, after in zip(free, sample_all(engine, prompts, GREEDY), strict=True):
        if end in before.token_ids:
            assert after.token_ids == before.token_ids[: before.token_ids.index(end) + 1]
            assert after.stop_reason == "stop"
        else:
            assert after.token_ids == before.token_ids
            assert after.stop_reason == "length"


def test_stop_strings_end_a_completion_and_stay_in_its_ids() -> None:
    engine, prompts = tiny.engine(), prompts_of(6)
    free = sample_all(engine, prompts, GREEDY)
    text = engine.tokenizer.decode
    # Three tokens in the middle of a completion, whole characters all of them.
    number, stop = next(
        (number, text(list(free[number].token_ids[at : at + 3])))
        for number in range(len(free))
        for at in range(1, 7)
        if all("\ufffd" not in text([token]) for token in free[number].token_ids[at : at + 3])
    )
    params = SamplingParams(10, temperature=0.0, stop=("never said", stop))
    (cut,) = sample_all(engine, prompts[number : number + 1], params)
    assert cut.stop_reason == "stop"
    assert cut.token_ids == free[number].token_ids[: len(cut.token_ids)]
    assert len(cut.token_ids) < 10
    assert stop in text(list(cut.token_ids))
    assert stop not in text(list(cut.token_ids[:-1]))


@pytest.mark.parametrize("stop", ["###", "Ответ:", "回答は以上です", "🙂🙂"])
def test_stop_strings_of_any_script_are_seen(stop: str) -> None:
    """A character may be several tokens."""
    loaded = tiny.engine().loaded
    tokens = loaded.tokenizer.encode("some text before " + stop, add_special_tokens=False)
    matcher = StopMatcher(loaded.tokenizer, (stop,))
    assert [matcher.ends(tokens[:n]) for n in range(1, len(tokens) + 1)] == [
        *[False] * (len(tokens) - 1),
        True,
    ]


def test_progress_is_counted_to_the_end() -> None:
    engine = tiny.engine(max_sequences=4)
    seen: list[tuple[str, int, int]] = []
    engine.on_progress = lambda *report: seen.append(report)
    sample_all(engine, prompts_of(7), GREEDY)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("sampling", 15, 15)
    assert engine.tokens_sampled == 150


def test_the_window_is_kept() -> None:
    engine = tiny.engine()
    full = tiny.ids(random.Random(0), tiny.CONTEXT)
    for call in (engine.sample(full, SamplingParams(1)), engine.score(full, (9,))):
        with pytest.raises(UserError, match=rf"{tiny.CONTEXT + 1} tokens but the model's window is {tiny.CONTEXT}"):
            tiny.run(call)


# ---- the draw itself ------------------------------------------------------------------------------------------------


def draw_rows(logits: torch.Tensor, params: Sequence[SamplingParams], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = uniform(len(params), torch.Generator().manual_seed(seed)).to(logits.device)
    return draw(logits, DrawPlan.of(params, logits.device), numbers)


def drawn(logits: torch.Tensor, temperature: float, top_p: float, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = logits.expand(n, -1).clone()
    return draw_rows(rows, [SamplingParams(1, temperature, top_p)] * n, seed=0)


def chi_square(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    """Standardised: about 0 with std 1 where the tokens were drawn from the probabilities."""
    expected = probs.double() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    alive = expected > 0
    assert counts[~alive].sum() == 0
    statistic = float(((counts - expected)[alive] ** 2 / expected[alive]).sum())
    freedom = int(alive.sum()) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draw_follows_the_softmax(temperature: float) -> None:
    logits = torch.randn(24, generator=torch.Generator().manual_seed(1)) * 1.5
    tokens, logprobs = drawn(logits, temperature, 1.0, 50_000)
    probs = (logits / temperature).softmax(-1)
    assert abs(chi_square(tokens, probs)) < 4
    torch.testing.assert_close(logprobs, probs.log()[tokens])
    # The test can tell: another temperature does not pass.
    assert chi_square(tokens, (logits / (temperature * 1.1)).softmax(-1)) > 10


def test_top_p_draws_from_the_nucleus_alone() -> None:
    probs = torch.tensor([0.05, 0.4, 0.25, 0.1, 0.2])
    for top_p, nucleus in [(0.39, [1]), (0.41, [1, 2]), (0.64, [1, 2]), (0.66, [1, 2, 4]), (0.99, [0, 1, 2, 3, 4])]:
        tokens, logprobs = drawn(probs.log(), 1.0, top_p, 20_000)
        kept = torch.zeros(5)
        kept[nucleus] = probs[nucleus] / probs[nucleus].sum()
        assert sorted(set(tokens.tolist())) == nucleus
        torch.testing.assert_close(logprobs, kept.log()[tokens])
        if len(nucleus) > 1:
            assert abs(chi_square(tokens, kept)) < 4


def test_temperature_zero_takes_the_best_and_tells_its_plain_logprob() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(2))
    tokens, logprobs = draw_rows(logits, [SamplingParams(1, float(row % 2)) for row in range(200)], seed=0)
    best = logits.argmax(-1)
    assert torch.equal(tokens[::2], best[::2])
    assert not torch.equal(tokens[1::2], best[1::2])
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])


def test_rows_draw_by_their_own_settings() -> None:
    """Mixed temperatures and nuclei in one batch do not leak into each other."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(30_000, -1)
    tokens, _ = draw_rows(logits.clone(), [SamplingParams(1, top_p=p) for p in (1.0, 0.6, 0.4)] * 10_000, seed=3)
    assert abs(chi_square(tokens[0::3], torch.tensor([0.5, 0.3, 0.2]))) < 4
    assert abs(chi_square(tokens[1::3], torch.tensor([0.625, 0.375, 0.0]))) < 4
    assert set(tokens[2::3].tolist()) == {0}


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_impossible_tokens_are_never_drawn(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by the largest uniform number there is."""
    logits = torch.full((1, 5 * BLOCK + 7), -torch.inf, device=device)
    possible = [1, 2, BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 5]  # whole blocks have no mass, the last one among them
    logits[0, possible] = torch.tensor([0.0, -9.0, 1.0, -30.0, 3.0], device=device)
    plan = DrawPlan.of([SamplingParams(1)], logits.device)
    seen = []
    for number in (0.0, 0.001, 0.5, 1.0 - 1e-12, 1.0 - 2.0**-53):
        tokens, logprobs = draw(logits.clone(), plan, torch.tensor([[number]], dtype=torch.float64, device=device))
        assert torch.isfinite(logprobs).all()
        seen.append(int(tokens))
    assert seen == [1, 1, 3 * BLOCK + 5, 3 * BLOCK + 5, 3 * BLOCK + 5]


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 7 * BLOCK + 3])
def test_blocks_find_what_one_cumulative_sum_finds(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(500, size, generator=generator) * 3
    numbers = uniform(500, generator)
    tokens, _ = draw(logits, DrawPlan.of([SamplingParams(1)] * 500, logits.device), numbers)
    ends = logits.softmax(-1).double().cumsum(-1)
    assert torch.equal(tokens, torch.searchsorted(ends, numbers * ends[:, -1:], right=True)[:, 0])
