"""Our own kernels against the same in torch ops, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.engines.torch.decode_attention import DecodePlan, LayerCache, decode_attention, layout
from memtrain.engines.torch.native import build, packed, sample
from memtrain.engines.torch.native import decode as native
from memtrain.engines.torch.packed_attention import packed_attention
from memtrain.engines.torch.packed_plan import PackedPlan

needs_kernel = pytest.mark.skipif(native.kernel() is None, reason="needs a CPU with AVX512-BF16 and a C++ compiler")


def random_step(
    seed: int, rows: list[int], lengths: list[int], prefixes: list[int], heads: tuple[int, int], size: int
) -> tuple[DecodePlan, list[torch.Tensor]]:
    """A plan with random keys, row by row in bfloat16, and this step's q, k and v."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(torch.bfloat16)

    n_heads, kv_heads = heads
    like = torch.zeros(1, kv_heads, 0, size, dtype=torch.bfloat16)
    cache = LayerCache.zeros(like, like, len(rows), max(lengths) + 2, len(prefixes), max(prefixes, default=0), True)
    for tensor in cache:
        tensor.copy_(normal(*tensor.shape))
    plan = DecodePlan(
        {0: cache}, torch.tensor(lengths), torch.tensor(prefixes), *layout(rows, len(prefixes), torch.device("cpu"))
    )
    plan.begin_step(max(lengths) + 1)
    return plan, [normal(len(rows), n, 1, size) for n in (n_heads, kv_heads, kv_heads)]


def in_float64(plan: DecodePlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """The same step by torch ops on copies in float64."""
    cache = LayerCache(*(tensor.double() for tensor in plan.layers[0]))
    exact = DecodePlan(
        {0: cache}, plan.own_lengths_B, plan.prefix_lengths_G, plan.row_B, plan.slots_GM, plan.place_B, plan.ragged
    )
    exact.kernel = None
    exact.begin_step(plan.length)
    return decode_attention(exact, 0, q.double(), k.double(), v.double(), scale, None, None, None)


@needs_kernel
@given(
    st.integers(0, 1000),
    st.sampled_from([(1, 1), (4, 4), (9, 3), (14, 2), (8, 2)]),
    st.sampled_from([32, 64, 96, 128]),
    st.lists(st.integers(1, 90), max_size=3),
    st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 40)), min_size=1, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_the_kernel_is_softmax_attention(
    seed: int, heads: tuple[int, int], size: int, prefixes: list[int], slots: list[tuple[int, int]]
) -> None:
    rows = [row if row < len(prefixes) else -1 for row, _ in slots]
    plan, step = random_step(seed, rows, [length for _, length in slots], prefixes, heads, size)
    assert plan.kernel is not None
    wanted = in_float64(plan, *step, size**-0.5)
    found = decode_attention(plan, 0, *step, size**-0.5, None, None, None)
    assert found.dtype == torch.bfloat16
    # Weights and results are rounded to 8 bits of mantissa.
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=1.5e-2)
    cosine = torch.nn.functional.cosine_similarity(found.double().flatten(), wanted.flatten(), dim=0)
    assert cosine > 0.9999
    for slot, (_, length) in enumerate(slots):  # stored behind what was there
        assert torch.equal(plan.layers[0].own_k[slot, :, :, length], step[1][slot, :, 0])
        assert torch.equal(plan.layers[0].own_v[slot, :, length], step[2][slot, :, 0])


@needs_kernel
def test_large_scores_stay_finite() -> None:
    plan, (q, k, v) = random_step(1, [0, -1], [3, 0], [5], (4, 2), 32)
    found = decode_attention(plan, 0, q * 1e4, k * 1e4, v, 1.0, None, None, None)
    assert torch.isfinite(found).all()


@needs_kernel
def test_slots_that_stay_keep_their_layout() -> None:
    plan, _ = random_step(1, [-1, -1, -1], [3, 0, 4], [], (4, 2), 32)
    kept = plan.layers[0].keep_slots(torch.tensor([2, 0]))
    assert kept.by_row
    assert torch.equal(kept.own_k, plan.layers[0].own_k[[2, 0]])


@needs_kernel
def test_a_kernel_that_others_may_write_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path))
    build.library.cache_clear()
    try:
        assert build.library("draw") is not None
        (made,) = (tmp_path / "native").glob("draw-*.so")
        assert made.stat().st_mode & 0o777 == 0o700
        made.chmod(0o777)
        build.library.cache_clear()
        assert build.library("draw") is None
    finally:
        monkeypatch.undo()
        build.library.cache_clear()


def test_without_a_compiler_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    build.library.cache_clear()
    try:
        assert build.library("decode_attention") is None
        monkeypatch.setenv("MEMTRAIN_NATIVE", "0")
        build.library.cache_clear()
        assert build.library("decode_attention") is None
    finally:
        monkeypatch.undo()
        build.library.cache_clear()


needs_packed = pytest.mark.skipif(packed.kernel() is None, reason="needs a CPU with AVX512-BF16 and a C++ compiler")


@needs_packed
@given(
    st.integers(0, 1000),
    st.sampled_from([(1, 1), (4, 4), (9, 3), (14, 2), (50, 1)]),
    st.sampled_from([32, 64, 96, 128]),
    st.lists(st.tuples(st.integers(1, 70), st.integers(0, 3)), min_size=1, max_size=7),
)
@settings(max_examples=60, deadline=None)
def test_the_packed_kernel_is_softmax_attention(
    seed: int, heads: tuple[int, int], size: int, shape: list[tuple[int, int]]
) -> None:
    n_heads, kv_heads = heads
    lengths, parents, chain = [length for length, _ in shape], list[int](), list[int]()
    for index, (_, up) in enumerate(shape):  # depth-first: a segment hangs below the last one or an ancestor of it
        chain = chain[: max(0, len(chain) - up)]
        parents.append(chain[-1] if chain else -1)
        chain.append(index)
    starts = [0] * len(lengths)
    for index, parent in enumerate(parents):
        starts[index] = starts[parent] + lengths[parent] if parent >= 0 else 0
    plan = PackedPlan(lengths, parents, starts)
    generator, tokens = torch.Generator().manual_seed(seed), sum(lengths)
    wide = torch.randn(1, tokens, n_heads + 2 * kv_heads, size, generator=generator).to(torch.bfloat16).transpose(1, 2)
    q, k, v = wide.split([n_heads, kv_heads, kv_heads], dim=1)
    offsets = [sum(lengths[:index]) for index in range(len(lengths))]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for index, length in enumerate(lengths):
        rows = slice(offsets[index], offsets[index] + length)
        seen[rows, rows] = torch.ones(length, length).tril().bool()
        above = parents[index]
        while above >= 0:
            seen[rows, offsets[above] : offsets[above] + lengths[above]] = True
            above = parents[above]
    repeats = n_heads // kv_heads
    full_k, full_v = (x.double().repeat_interleave(repeats, dim=1) for x in (k, v))
    scores = (q.double() @ full_k.transpose(2, 3) * 0.2).masked_fill(~seen, -torch.inf)
    wanted = (scores.softmax(-1) @ full_v).transpose(1, 2)
    assert packed.usable(q, k, v) == (repeats <= packed.MOST_REPEATS)
    if not packed.usable(q, k, v):
        return
    found, lse = packed.packed_forward(plan, q, k, v, 0.2)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=1.5e-2)
    assert torch.nn.functional.cosine_similarity(found.double().flatten(), wanted.flatten(), dim=0) > 0.9999
    by_token = scores.logsumexp(-1)[0].view(kv_heads, repeats, tokens).transpose(1, 2).flatten(1)
    torch.testing.assert_close(lse.double(), by_token, rtol=1e-4, atol=1e-4)


@needs_packed
def test_gradients_behind_the_packed_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PackedPlan([40, 30, 25, 20], [-1, 0, 0, 2], [0, 40, 40, 65])
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(1, n, 115, 32, generator=generator).to(torch.bfloat16) for n in (6, 2, 2)]
    weight = torch.randn(1, 115, 6, 32, generator=generator)

    def gradients() -> list[torch.Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in draw]
        (packed_attention(plan, *inputs, 0.3).float() * weight).sum().backward()
        return [tensor.grad.double() for tensor in inputs if tensor.grad is not None]

    mine = gradients()
    monkeypatch.setattr(packed, "kernel", lambda: None)
    for found, wanted in zip(mine, gradients(), strict=True):
        assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.9998


needs_draw = pytest.mark.skipif(sample.kernel() is None, reason="needs a CPU with AVX512-BF16 and a C++ compiler")


@needs_draw
@given(st.integers(0, 1000), st.sampled_from([1, 17, 128, 500, 4099]), st.sampled_from([0.5, 1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_tokens_are_drawn_by_inverse_transform(seed: int, size: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(9, size, generator=generator) * 4).to(torch.bfloat16)
    numbers = torch.rand(9, 1, generator=generator, dtype=torch.float64)
    numbers[0], numbers[1] = 0.0, 1 - 2.0**-53
    tokens, logprobs = sample.draw_native(logits, torch.full((9,), temperature), numbers)
    exact = (logits.double() / temperature).log_softmax(-1)
    torch.testing.assert_close(logprobs.double(), exact.gather(1, tokens[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    ends = exact.exp().cumsum(-1)
    high = ends.gather(1, tokens[:, None])
    low = high - exact.exp().gather(1, tokens[:, None])
    assert ((numbers >= low - 1e-6) & (numbers <= high + 1e-6)).all()
    assert (exact.exp().gather(1, tokens[:, None]) > 0).all()


@needs_draw
def test_greedy_rows_take_the_first_largest_logit() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -torch.inf], [-torch.inf, 0.0, 1.0, 1.0]], dtype=torch.bfloat16)
    tokens, logprobs = sample.draw_native(logits, torch.zeros(2), torch.full((2, 1), 0.9, dtype=torch.float64))
    assert tokens.tolist() == [1, 2]
    assert torch.allclose(logprobs, logits.float().log_softmax(-1)[[0, 1], [1, 2]], atol=1e-5)
    tokens, _ = sample.draw_native(logits, torch.ones(2), torch.full((2, 1), 1 - 2.0**-53, dtype=torch.float64))
    assert tokens.tolist() == [2, 3]  # never one without mass
