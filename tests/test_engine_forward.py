"""The joint update over shared prefixes against the stock model run row by row: same loss, same gradient."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.forward import CompletionBatch, completion_logprobs
from memtrain.rl.loss import Normalisers, TokenBatch, joint_loss
from memtrain.types import Row

LOSS = LossConfig(kl_coef=0.3, cross_entropy_coef=0.5, old_logprobs="sampler", temperature=1.3)
OPTIMISER = OptimiserConfig()
Gradients = dict[str, torch.Tensor]


def stock(family: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model as it is, with its own attention."""
    folder = family if isinstance(family, Path) else tiny.model_folder(family)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def perturb(model: Any, seed: int = 1) -> None:
    """Move the policy away from the reference, the same way for every copy of the model."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=draw))


def row_logprobs(model: Any, row: Row, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of one row's completion by the stock model, differentiable."""
    everything = torch.tensor([(*row.prompt_ids, *row.completion_ids)])
    logits = model(input_ids=everything, use_cache=False).logits[0].float() / temperature
    at = slice(len(row.prompt_ids) - 1, everything.shape[1] - 1)
    return logits[at].log_softmax(-1).gather(1, everything[0, len(row.prompt_ids) :, None])[:, 0]


def as_sampled(rows: Sequence[Row], policy: Any, temperature: float) -> list[Row]:
    """Old log-probs near the policy's, some so far off that ratios are clipped on both sides."""
    rng = random.Random(5)
    out = []
    for row in rows:
        if row.loss == "policy":
            with torch.no_grad():
                now = row_logprobs(policy, row, temperature).tolist() if row.completion_ids else []
            row = tiny.row(
                row.prompt_ids,
                row.completion_ids,
                row.advantage,
                weight=row.weight,
                logprobs=tuple(value + rng.gauss(0, 0.2) for value in now),
            )
        out.append(row)
    return out


def separate(policy: Any, reference: Any, rows: Sequence[Row], config: LossConfig) -> tuple[float, Gradients]:
    """Loss and gradient with one stock forward pass a row."""
    z, total = Normalisers.of(rows, config), 0.0
    policy.zero_grad(set_to_none=True)
    for row in rows:
        if not row.completion_ids:
            continue
        with torch.no_grad():
            anchor = row_logprobs(reference, row, config.temperature)
        batch = TokenBatch.of([row], torch.device("cpu"))
        loss, _ = joint_loss(row_logprobs(policy, row, config.temperature), batch, anchor, config, z)
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def updated(engine: TorchEngine, rows: Sequence[Row], config: LossConfig) -> tuple[dict[str, float], Gradients]:
    """Metrics and gradient of one ``update``; the optimiser's step itself is left out."""
    seen: Gradients = {}
    adamw = engine._adamw()

    def step(config: OptimiserConfig) -> float:
        seen.update({name: m.grad.clone() for name, m in adamw.masters.items() if m.grad is not None})
        adamw.clear_gradients()
        return 0.0

    adamw.step = step  # type: ignore[method-assign]
    return tiny.run(engine.update(rows, config, OPTIMISER)), seen


def relative_error(got: Gradients, wanted: Gradients) -> float:
    """Largest relative error of a parameter; what is zero by symmetry (key biases) is measured by the whole."""
    assert set(got) <= set(wanted)
    whole = torch.stack([g.float().norm() for g in wanted.values()]).norm()
    errors = []
    for name, gradient in wanted.items():
        difference = (got[name].float() if name in got else 0.0) - gradient.float()
        errors.append(float(difference.norm() / (gradient.float().norm() + 1e-4 * whole)))
    return max(errors)


def cosine(got: Gradients, wanted: Gradients) -> float:
    a, b = (torch.cat([g[name].float().flatten() for name in sorted(wanted)]) for g in (got, wanted))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def prepared(family: str, **options: Any) -> tuple[TorchEngine, list[Row], float, Gradients]:
    """An engine whose policy has left its reference, rows, and what the stock model says about them."""
    reference, policy = stock(family), stock(family)
    perturb(policy)
    engine = tiny.engine(family, **options)
    tiny.run(engine.anchor())
    perturb(engine.loaded.model)
    rows = as_sampled(tiny.joint_rows(), policy, LOSS.temperature)
    loss, gradients = separate(policy, reference, rows, LOSS)
    return engine, rows, loss, gradients


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_joint_update_over_shared_prefixes_is_exact(family: str) -> None:
    engine, rows, loss, gradients = prepared(family)
    metrics, got = updated(engine, rows, LOSS)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert relative_error(got, gradients) < 1e-4
    # The case is not a trivial one: prefixes are shared, ratios clipped, the KL alive.
    assert metrics["tokens_packed"] < 0.75 * metrics["tokens_separate"]
    assert metrics["clip_fraction"] > 0.05
    assert metrics["kl"] > 1e-4
    assert metrics["cross_entropy"] > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"share_prefixes": False}], ids=str)
def test_checkpointing_and_sharing_change_no_gradient(family: str, options: dict[str, Any]) -> None:
    engine, rows, loss, gradients = prepared(family, **options)
    metrics, got = updated(engine, rows, LOSS)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert relative_error(got, gradients) < 1e-4


@pytest.mark.parametrize("budget", [1, 100, 400])
def test_micro_batches_change_no_gradient(budget: int) -> None:
    engine, rows, loss, gradients = prepared("llama", micro_batch_tokens=budget)
    metrics, got = updated(engine, rows, LOSS)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert relative_error(got, gradients) < 1e-4


@pytest.mark.parametrize("normaliser", ["conversations", "tokens"])
def test_normalisers_count_over_the_whole_update(normaliser: Any) -> None:
    config = LossConfig(kl_coef=0.0, normaliser=normaliser)
    rows = tiny.joint_rows()
    whole, in_whole = updated(tiny.engine(), rows, config)
    parts, in_parts = updated(tiny.engine(micro_batch_tokens=64), rows, config)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert relative_error(in_parts, in_whole) < 1e-4


def test_a_group_of_one_and_one_row() -> None:
    """G = 1: nothing is shared and nothing is lost."""
    rng = random.Random(3)
    rows = [tiny.row(tiny.ids(rng, 30), tiny.ids(rng, 6), 0.8)]
    reference = stock("qwen3")
    config = LossConfig(kl_coef=0.0)
    loss, wanted = separate(stock("qwen3"), reference, rows, config)
    metrics, got = updated(tiny.engine("qwen3"), rows, config)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert relative_error(got, wanted) < 1e-4


def test_rows_without_a_completion_count_and_add_nothing() -> None:
    rng = random.Random(4)
    full = tiny.row(tiny.ids(rng, 30), tiny.ids(rng, 6), 0.8)
    empty = [tiny.row(tiny.ids(rng, n), (), 0.5) for n in (1, 1, 40)]
    config = LossConfig(kl_coef=0.1)
    alone, wanted = updated(tiny.engine(), [full], config)
    # A budget of one token puts every row into a micro-batch of its own, those without a token too.
    among, got = updated(tiny.engine(micro_batch_tokens=1), [*empty, full], config)
    assert among["loss"] == pytest.approx(alone["loss"] / 4)
    assert relative_error({name: 4 * g for name, g in got.items()}, wanted) < 1e-4
    assert tiny.run(tiny.engine().update(empty, config, OPTIMISER))["grad_norm"] == 0.0
    assert tiny.run(tiny.engine().update([], config, OPTIMISER))["rows"] == 0.0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_bfloat16_keeps_the_direction(family: str) -> None:
    rows = tiny.joint_rows()
    config = LossConfig(kl_coef=0.0, cross_entropy_coef=0.5)
    _, exact = updated(tiny.engine(family), rows, config)
    _, shared = updated(tiny.engine(family, dtype="bfloat16"), rows, config)
    _, apart = updated(tiny.engine(family, dtype="bfloat16", share_prefixes=False), rows, config)
    assert cosine(shared, apart) > 0.999
    assert cosine(shared, exact) > 0.99
    assert all(gradient.dtype == torch.float32 for gradient in shared.values())


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "cohere"])
def test_the_head_in_pieces_gives_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are taken a few at a time: neither the log-probs nor their gradient notice."""
    rows = [row for row in tiny.joint_rows() if row.completion_ids]
    loaded = tiny.engine(family).loaded
    packed = CompletionBatch.of([r.prompt_ids for r in rows], [r.completion_ids for r in rows])

    def everything() -> tuple[torch.Tensor, Gradients]:
        loaded.model.zero_grad(set_to_none=True)
        logprobs = completion_logprobs(loaded, packed, temperature=0.7)
        (logprobs * torch.arange(len(logprobs))).sum().backward()
        return logprobs.detach(), {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}

    at_once, wanted = everything()
    monkeypatch.setattr("memtrain.engines.torch.head.CHUNK_LOGITS", 7 * 500)
    monkeypatch.setattr("memtrain.engines.torch.head.BLOCK_LOGITS", 1)
    in_pieces, got = everything()
    torch.testing.assert_close(in_pieces, at_once)
    assert relative_error(got, wanted) < 1e-4


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_are_the_stock_models_logprobs(family: str) -> None:
    rows = [row for row in tiny.joint_rows(seed=2) if row.completion_ids]
    engine, model = tiny.engine(family), stock(family)

    async def scores() -> list[list[float]]:
        import asyncio

        return await asyncio.gather(*(engine.score(row.prompt_ids, row.completion_ids) for row in rows))

    for row, got in zip(rows, tiny.run(scores()), strict=True):
        with torch.no_grad():
            assert got == pytest.approx(row_logprobs(model, row).tolist(), abs=1e-4)


def test_nothing_to_score() -> None:
    assert tiny.run(tiny.engine().score((9,), ())) == []
    assert tiny.run(tiny.engine().score((9, 10, 11), ())) == []
