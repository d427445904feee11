"""The joint loss against a hand computation in plain floats, and against TRL's GRPO trainer on the same rows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_forward import relative_error, row_logprobs, stock, updated

from memtrain.engines.base import LossConfig
from memtrain.rl.loss import Normalisers, TokenBatch, add_stats, joint_loss, mismatch_metrics
from memtrain.types import Row

CPU = torch.device("cpu")


def by_hand(
    rows: Sequence[Row], logprobs: Sequence[Sequence[float]], reference: Sequence[Sequence[float]] | None, c: LossConfig
) -> float:
    """Equation 6 of the paper, token by token."""
    policy = [i for i, row in enumerate(rows) if row.loss == "policy"]
    known = [i for i, row in enumerate(rows) if row.loss == "cross_entropy"]
    tokens = sum(len(rows[i].completion_ids) for i in policy)
    z = len(policy) if c.normaliser == "conversations" else tokens
    objective = 0.0
    for i in policy:
        for t, now in enumerate(logprobs[i]):
            old = rows[i].logprobs[t] if c.old_logprobs == "sampler" else now
            ratio, a = math.exp(now - old), rows[i].advantage
            clipped = min(max(ratio, 1 - c.clip_low), 1 + c.clip_high)
            gain = min(ratio * a, clipped * a)
            if c.importance_sampling_cap:
                gain *= min(math.exp(now - rows[i].logprobs[t]), c.importance_sampling_cap)
            if reference is not None:
                gap = reference[i][t] - now
                gain -= c.kl_coef * (math.exp(gap) - gap - 1)
            objective += rows[i].weight * gain / max(z, 1)
    known_tokens = sum(len(rows[i].completion_ids) for i in known)
    entropy = -sum(rows[i].weight * value for i in known for value in logprobs[i]) / max(known_tokens, 1)
    return -objective + c.cross_entropy_coef * entropy


def loss_of(
    rows: Sequence[Row], logprobs: Any, reference: Any, c: LossConfig, z: Normalisers | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Loss, the gradient by the log-probs, and statistics."""
    flat = torch.tensor([v for row in logprobs for v in row], requires_grad=True)
    anchor = None if reference is None else torch.tensor([v for row in reference for v in row])
    loss, stats = joint_loss(flat, TokenBatch.of(rows, CPU), anchor, c, z or Normalisers.of(rows, c))
    loss.backward()
    assert flat.grad is not None
    return loss.detach(), flat.grad, stats


def one_token(ratio: float, advantage: float, **options: Any) -> tuple[float, float]:
    """Loss and slope of a single token whose probability changed by ``ratio``."""
    row = tiny.row([1], [2], advantage, logprobs=(-2.0,), **options)
    c = LossConfig(kl_coef=0.0, old_logprobs="sampler", clip_low=0.1, clip_high=0.3)
    loss, gradient, _ = loss_of([row], [[-2.0 + math.log(ratio)]], None, c)
    return float(loss), float(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 1.0, -1.2, -1.2),  # inside: full gradient
        (1.5, 1.0, -1.3, 0.0),  # good and already more likely: clipped above
        (0.5, 1.0, -0.5, -0.5),  # good but less likely: never clipped
        (0.5, -1.0, 0.9, 0.0),  # bad and already less likely: clipped below
        (1.5, -1.0, 1.5, 1.5),  # bad but more likely: never clipped
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipping_on_both_sides(ratio: float, advantage: float, loss: float, slope: float) -> None:
    got = one_token(ratio, advantage)
    assert got == pytest.approx((loss, slope), abs=1e-6)
    assert one_token(ratio, advantage, weight=3.0) == pytest.approx((3 * loss, 3 * slope), abs=1e-5)


def test_low_variance_kl_and_its_slope() -> None:
    row, c = tiny.row([1], [2], 0.0), LossConfig(kl_coef=0.5)
    for now, anchor in [(-1.0, -1.0), (-1.0, -3.0), (-3.0, -1.0)]:
        loss, gradient, stats = loss_of([row], [[now]], [[anchor]], c)
        k3 = math.exp(anchor - now) - (anchor - now) - 1
        assert float(loss) == pytest.approx(0.5 * k3, abs=1e-6)
        assert float(gradient) == pytest.approx(0.5 * (1 - math.exp(anchor - now)), abs=1e-6)
        assert stats["kl"] == pytest.approx(k3, abs=1e-6)


def test_two_rows_worked_out() -> None:
    """Two conversations of 3 and 1 tokens, on-policy, no KL; a known answer of 2 tokens."""
    rows = [
        tiny.row([1], [2, 3, 4], 0.5),
        tiny.row([1], [5], -1.0),
        tiny.row([1], [6, 7], 0.0, loss="cross_entropy", weight=2.0),
    ]
    logprobs = [[-1.0, -2.0, -3.0], [-4.0], [-0.5, -1.5]]
    per_conversation = LossConfig(kl_coef=0.0, normaliser="conversations", cross_entropy_coef=0.1)
    per_token = LossConfig(kl_coef=0.0, normaliser="tokens", cross_entropy_coef=0.1)
    known = 0.1 * 2.0 * (0.5 + 1.5) / 2
    assert float(loss_of(rows, logprobs, None, per_conversation)[0]) == pytest.approx(-(3 * 0.5 - 1) / 2 + known)
    loss, gradient, stats = loss_of(rows, logprobs, None, per_token)
    assert float(loss) == pytest.approx(-(3 * 0.5 - 1) / 4 + known)
    assert gradient.tolist() == pytest.approx([-0.125, -0.125, -0.125, 0.25, -0.1, -0.1])
    assert stats["policy_tokens"] == 4
    assert stats["known_tokens"] == 2
    assert stats["cross_entropy"] == pytest.approx(2.0)
    assert stats["entropy"] == pytest.approx(10.0)


def random_case(seed: int) -> tuple[list[Row], list[list[float]], list[list[float]]]:
    rng = random.Random(seed)
    rows, now, anchor = [], [], []
    for _ in range(rng.randrange(1, 6)):
        n = rng.randrange(0, 5)
        values = [rng.uniform(-6, -0.01) for _ in range(n)]
        known = rng.random() < 0.3
        near = tuple(min(-0.001, v + rng.gauss(0, 0.3)) for v in values)
        kind: dict[str, Any] = {"loss": "cross_entropy"} if known else {"logprobs": near}
        weight = rng.choice([0.0, 0.5, 1.0, 2.0])
        rows.append(tiny.row([1], range(2, 2 + n), rng.gauss(0, 1), weight=weight, **kind))
        now.append(values)
        anchor.append([v + rng.gauss(0, 0.5) for v in values])
    return rows, now, anchor


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    normaliser=st.sampled_from(["conversations", "tokens"]),
    old=st.sampled_from(["recompute", "sampler"]),
    kl=st.sampled_from([0.0, 0.2]),
    low=st.sampled_from([0.1, 0.2]),
    high=st.sampled_from([0.2, 0.3]),
    cap=st.sampled_from([0.0, 0.9, 2.0]),
)
def test_any_rows_by_hand(seed: int, normaliser: Any, old: Any, kl: float, low: float, high: float, cap: float) -> None:
    rows, now, anchor = random_case(seed)
    c = LossConfig(low, high, kl, normaliser, cross_entropy_coef=0.7, old_logprobs=old, importance_sampling_cap=cap)
    reference = anchor if kl else None
    loss, gradient, _ = loss_of(rows, now, reference, c)
    assert float(loss) == pytest.approx(by_hand(rows, now, reference, c), rel=1e-4, abs=1e-5)
    # Micro-batches split the sum and nothing else.
    z = Normalisers.of(rows, c)
    each = [
        loss_of([row], [n], None if reference is None else [a], c, z)
        for row, n, a in zip(rows, now, anchor, strict=True)
    ]
    assert float(sum(part[0] for part in each)) == pytest.approx(float(loss), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(torch.cat([part[1] for part in each]), gradient)


def test_rows_far_off_policy_stay_finite() -> None:
    """Cross-entropy rows carry no old log-probs; a missing one must not become a ratio."""
    rows = [tiny.row([1], [2], 0.0, loss="cross_entropy"), tiny.row([1], [2], 1.0, logprobs=(-0.1,))]
    c = LossConfig(old_logprobs="sampler", kl_coef=0.1)
    loss, gradient, _ = loss_of(rows, [[-300.0], [-200.0]], [[-1.0], [-201.0]], c)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_truncated_importance_sampling_worked_out() -> None:
    """Three tokens that the policy finds half, 1.5 and 4 times as likely as the sampler did; cap 2. The weight is a
    constant of the gradient, leaves KL alone, and does not touch known answers."""
    ratios, weights = (0.5, 1.5, 4.0), (0.5, 1.5, 2.0)
    rows = [
        tiny.row([1], [2, 3, 4], 2.0, logprobs=tuple(-3.0 - math.log(r) for r in ratios), weight=0.5),
        tiny.row([1], [5], 0.0, loss="cross_entropy"),
    ]
    now = [[-3.0] * 3, [-1.0]]
    c = LossConfig(kl_coef=0.0, cross_entropy_coef=1.0, importance_sampling_cap=2.0)
    loss, gradient, stats = loss_of(rows, now, None, c)
    assert float(loss) == pytest.approx(-0.5 * 2.0 * sum(weights) + 1.0)
    assert gradient.tolist() == pytest.approx([*(-0.5 * 2.0 * w for w in weights), -1.0])
    with_kl = LossConfig(kl_coef=0.3, importance_sampling_cap=2.0)
    anchor = [[-4.0] * 3, [-1.0]]
    k3 = math.exp(-1) + 1 - 1
    assert float(loss_of(rows, now, anchor, with_kl)[0]) == pytest.approx(float(loss) + 0.3 * 0.5 * 3 * k3)
    told = mismatch_metrics(stats)
    assert told["sampler_truncated"] == pytest.approx(1 / 3)
    assert told["sampler_ratio"] == pytest.approx(2.0)
    assert told["sampler_ratio_max"] == pytest.approx(4.0)
    assert told["sampler_gap"] == pytest.approx(sum(abs(math.log(r)) for r in ratios) / 3)
    assert told["sampler_kl"] == pytest.approx(sum(r - math.log(r) - 1 for r in ratios) / 3)


def test_without_a_cap_the_sampler_changes_nothing() -> None:
    rows, now, anchor = random_case(3)
    off = [loss_of(rows, now, anchor, LossConfig(kl_coef=0.1)) for _ in range(2)]
    moved = [tiny.row(r.prompt_ids, r.completion_ids, r.advantage, weight=r.weight, loss=r.loss) for r in rows]
    other = loss_of(moved, now, anchor, LossConfig(kl_coef=0.1))
    assert torch.equal(off[0][0], other[0])
    assert torch.equal(off[0][1], other[1])
    assert "sampler_truncated" not in mismatch_metrics(off[0][2])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_mismatch_is_that_of_all_tokens_however_they_are_split(seed: int) -> None:
    rows, now, _ = random_case(seed)
    c = LossConfig(kl_coef=0.0, importance_sampling_cap=1.1)
    z = Normalisers.of(rows, c)
    sums: dict[str, float] = {}
    for row, values in zip(rows, now, strict=True):
        add_stats(sums, loss_of([row], [values], None, c, z)[2])
    whole = mismatch_metrics(loss_of(rows, now, None, c)[2])
    assert mismatch_metrics(sums) == pytest.approx(whole, rel=1e-4, abs=1e-6)
    policy = [
        p - q
        for row, values in zip(rows, now, strict=True)
        if row.loss == "policy"
        for p, q in zip(values, row.logprobs, strict=True)
    ]
    assert whole["sampler_ratio_max"] == pytest.approx(max((math.exp(d) for d in policy), default=0.0), rel=1e-4)
    assert whole["sampler_kl"] >= -1e-6


def test_a_token_that_the_policy_never_draws_stays_finite() -> None:
    row = tiny.row([1], [2, 3], 1.0, logprobs=(-0.1, -300.0))
    c = LossConfig(kl_coef=0.0, importance_sampling_cap=2.0)
    loss, gradient, stats = loss_of([row], [[-300.0, -0.1]], None, c)
    assert torch.isfinite(loss)
    assert gradient.tolist() == pytest.approx([0.0, -2.0], abs=1e-6)
    assert all(math.isfinite(value) for value in mismatch_metrics(stats).values())


# ---- TRL ------------------------------------------------------------------------------------------------------------

ROOM = 11
"""``max_completion_length`` of the TRL trainer: dr_grpo divides by it, we do not."""
BETA = 0.3


def trl_trainer(loss_type: str, folder: Path, temperature: float, **options: Any) -> Any:
    """A real GRPOTrainer on the tiny model; only its loss is used, and its correction of the sampler."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        loss_type=loss_type,
        beta=BETA,
        use_bias_correction_kl=False,  # TRL may weigh the KL by the ratio too (DeepSeek-V3.2); MemTrain does not
        epsilon=0.2,
        epsilon_high=0.28,
        max_completion_length=ROOM,
        temperature=temperature,
        use_cpu=True,
        bf16=False,
        report_to=[],
        num_generations=2,
        per_device_train_batch_size=2,
        **options,
    )
    return trl.GRPOTrainer(
        stock("llama"),
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 4),
        processing_class=tiny.tokenizer(),
    )


def trl_inputs(rows: Sequence[Row], reference: Sequence[Sequence[float]]) -> dict[str, torch.Tensor]:
    """Prompts padded at the left, completions at the right, as TRL lays them out."""
    wide, long = (max(len(getattr(row, name)) for row in rows) for name in ("prompt_ids", "completion_ids"))

    def right(values: Sequence[Any], fill: Any) -> list[Any]:
        return [*values, *[fill] * (long - len(values))]

    return {
        "prompt_ids": torch.tensor([[0] * (wide - len(r.prompt_ids)) + list(r.prompt_ids) for r in rows]),
        "prompt_mask": torch.tensor([[0] * (wide - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in rows]),
        "completion_ids": torch.tensor([right(r.completion_ids, 0) for r in rows]),
        "completion_mask": torch.tensor([right([1] * len(r.completion_ids), 0) for r in rows]),
        "advantages": torch.tensor([row.advantage for row in rows]),
        "old_per_token_logps": torch.tensor([right(r.logprobs, 0.0) for r in rows]),
        "ref_per_token_logps": torch.tensor([right(values, 0.0) for values in reference]),
    }


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("temperature", [1.0, 1.3])
@pytest.mark.parametrize(("normaliser", "loss_type"), [("tokens", "bnpo"), ("conversations", "dr_grpo")])
def test_trl_gives_the_same_loss_and_gradient(
    normaliser: Any, loss_type: str, temperature: float, tmp_path: Path
) -> None:
    """Off-policy rows of unequal lengths that share prefixes; KL to a reference that differs from the policy."""
    rows, reference, anchor_model = off_policy_rows(tmp_path, temperature)
    trainer = trl_trainer(loss_type, tmp_path / "trl", temperature)
    trainer.model.eval()  # as ours: no dropout, no division by accumulation steps
    loss = trainer.compute_loss(trainer.model, trl_inputs(rows, reference))
    if normaliser == "conversations":
        loss = loss * ROOM
    config = LossConfig(0.2, 0.28, BETA, normaliser, old_logprobs="sampler", temperature=temperature)
    metrics = same_loss_and_gradient(trainer, loss, rows, anchor_model, config)
    told = trainer._metrics["eval"]
    assert metrics["clip_fraction"] == pytest.approx(told["clip_ratio/region_mean"][0], abs=1e-6)
    assert metrics["clip_fraction"] > 0.05
    assert metrics["kl"] == pytest.approx(told["kl"][0], rel=1e-3)


def off_policy_rows(folder: Path, temperature: float) -> tuple[list[Row], list[list[float]], Any]:
    """Rows whose log-probs are not the policy's, their log-probs under a reference, and that reference."""
    rng = random.Random(9)
    model, other = stock("llama"), tiny.save_model(folder / "other", "llama", seed=0, spread=0.3)
    anchor_engine = tiny.engine(other)
    with torch.no_grad():
        for parameter in anchor_engine.loaded.model.parameters():
            parameter.mul_(0.97)
    anchor_model = anchor_engine.loaded.model
    anchor_model.set_attn_implementation("eager")
    stem = tiny.ids(rng, 24)
    rows, reference = [], []
    for n in range(6):
        prompt = stem + tiny.ids(rng, 3 + n) if n < 4 else tiny.ids(rng, 12 + n)
        draft = tiny.row(prompt, tiny.ids(rng, 3 + (4 * n) % 9), rng.gauss(0, 1))
        with torch.no_grad():
            now = row_logprobs(model, draft, temperature).tolist()
            reference.append(row_logprobs(anchor_model, draft, temperature).tolist())
        old = tuple(value + rng.gauss(0, 0.25) for value in now)
        rows.append(tiny.row(draft.prompt_ids, draft.completion_ids, draft.advantage, logprobs=old))
    return rows, reference, anchor_model


def same_loss_and_gradient(
    trainer: Any, loss: torch.Tensor, rows: Sequence[Row], anchor_model: Any, config: LossConfig
) -> dict[str, float]:
    """Our metrics, once TRL's loss and gradient have been found equal to ours."""
    loss.backward()
    wanted = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    engine = tiny.engine("llama")
    engine._reference = {name: p.detach().clone() for name, p in anchor_model.named_parameters()}
    metrics, got = updated(engine, rows, config)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert relative_error(got, wanted) < 1e-4
    return metrics


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("cap", [1.15, 2.0])
def test_trl_corrects_for_the_sampler_alike(cap: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL recomputes the old log-probs, takes the ratio to what the sampler reported, cuts it and weighs the loss."""
    rows, reference, anchor_model = off_policy_rows(tmp_path, 1.3)
    correction = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": cap}
    trainer = trl_trainer("bnpo", tmp_path / "trl", 1.3, scale_rewards="none", **correction)
    trainer.model.eval()
    trainer.use_vllm = True  # set late: the trainer would start one
    rewards = [row.advantage for row in rows]
    trainer.reward_funcs = [lambda completions, **rest: rewards]
    drawn = [list(row.completion_ids) for row in rows]
    sampled = ([list(r.prompt_ids) for r in rows], drawn, None, ["a"] * len(rows), [list(r.logprobs) for r in rows])
    monkeypatch.setattr(trainer, "_generate", lambda prompts: (*sampled, {}, None, None))
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * len(rows))
    inputs["ref_per_token_logps"] = trl_inputs(rows, reference)["ref_per_token_logps"]
    # Advantages are TRL's: rewards less the mean of their pair.
    pairs = zip(rows, inputs["advantages"].tolist(), strict=True)
    rows = [tiny.row(r.prompt_ids, r.completion_ids, advantage, logprobs=r.logprobs) for r, advantage in pairs]
    assert rows[0].advantage == pytest.approx((rewards[0] - rewards[1]) / 2)
    loss = trainer.compute_loss(trainer.model, inputs)
    config = LossConfig(0.2, 0.28, BETA, "tokens", temperature=1.3, importance_sampling_cap=cap)
    metrics = same_loss_and_gradient(trainer, loss, rows, anchor_model, config)
    told = trainer._metrics["eval"]
    assert metrics["sampler_gap"] == pytest.approx(told["sampling/sampling_logp_difference/mean"][0], rel=1e-4)
    ratios = inputs["importance_sampling_ratio"][inputs["completion_mask"].bool()]
    assert bool((ratios == cap).any()) == (cap < 2.0)
    assert float(ratios.min()) < 0.9
    uncorrected = updated(tiny.engine("llama"), rows, LossConfig(0.2, 0.28, 0.0, "tokens", temperature=1.3))[1]
    corrected = updated(
        tiny.engine("llama"),
        rows,
        LossConfig(0.2, 0.28, 0.0, "tokens", temperature=1.3, importance_sampling_cap=cap),
    )[1]
    assert relative_error(uncorrected, corrected) > 0.05
