"""Peers do the same work: plain rows give our loss and gradient, TRL trains the rows it is handed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from synthetic_corpus import sentence
from test_engine_forward import cosine, relative_error, updated

from memtrain.bench import harness, limit
from memtrain.bench import step as bench_step
from memtrain.bench import update as bench_update
from memtrain.bench.episodes import Recorder, Replayer, configs, endless, experience_of, record, step_rows
from memtrain.bench.models import Place, load_engine
from memtrain.bench.peers import trl
from memtrain.bench.peers.generate import (
    ContinuousSettings,
    GenerateSettings,
    generate,
    generate_batch,
    left_padded,
    load_peer,
)
from memtrain.bench.peers.per_row import PerRowTrainer, completion_logprobs, micro_batches
from memtrain.bench.progress import Progress
from memtrain.bench.settings import BenchSettings
from memtrain.bench.workload import describe, write_turns
from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.types import Completion, Row, SamplingParams

CPU = torch.device("cpu")
LOSS = LossConfig(kl_coef=0.3)


def rows_of_groups(seed: int = 0, n: int = 6) -> list[Row]:
    """Policy rows of two groups with a common prefix each, of unequal lengths."""
    rng = random.Random(seed)
    found = []
    for group in range(2):
        stem = tiny.ids(rng, 30 + 5 * group)
        for member in range(n // 2):
            prompt = stem + tiny.ids(rng, 4 + 3 * member)
            advantage = rng.choice((-1, 1)) * rng.uniform(0.2, 1)
            found.append(tiny.row(prompt, tiny.ids(rng, 5 + (3 * member) % 7), advantage))
    return found


def peer_model(dtype: torch.dtype = torch.float32) -> Any:
    return load_peer(tiny.model_folder("llama"), CPU, dtype)


def frozen() -> Any:
    """A reference that differs from the policy."""
    model = peer_model().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.97)
    return model


@pytest.mark.parametrize("budget", [60, 10_000])
def test_per_row_training_gives_our_loss_and_gradient(budget: int) -> None:
    rows = rows_of_groups()
    reference = frozen()
    engine = tiny.engine("llama")
    engine._reference = {name: p.detach().clone() for name, p in reference.named_parameters()}
    metrics, ours = updated(engine, rows, LOSS)
    trainer = PerRowTrainer(peer_model(), reference, budget)
    loss, padded = trainer.backward(rows, LOSS)
    theirs = {name: master.grad for name, master in trainer.optimiser.masters.items() if master.grad is not None}
    assert loss == pytest.approx(metrics["loss"], rel=1e-4)
    assert relative_error(ours, theirs) < 1e-4
    assert padded >= sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)


def test_micro_batches_keep_the_budget_and_every_row() -> None:
    rows = rows_of_groups(n=12)
    for budget in (1, 100, 200, 10**6):
        parts = micro_batches(rows, budget)
        assert sorted(map(id, (row for part in parts for row in part))) == sorted(map(id, rows))
        for part in parts:
            longest = max(len(row.prompt_ids) + len(row.completion_ids) for row in part)
            assert len(part) == 1 or len(part) * longest <= budget


def test_the_bench_compares_loss_and_gradient_itself(settings: BenchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_update, "run_child", lambda *arguments, **rest: {})
    found = bench_update.bench_update(settings, Progress())
    agreement = found["agreement"]
    assert agreement["loss_memtrain"] == pytest.approx(agreement["loss_per_row"], rel=1e-4)
    assert agreement["gradient_cosine"] > 0.99999
    work = found["work"]
    assert work["tokens_packed"] < work["tokens_separate"] <= work["tokens_padded"]
    assert found["limit"][bench_update.OURS]["share"] > 0


def test_the_tap_keeps_the_first_gradient_and_the_cosine_tells_them_apart() -> None:
    taps = []
    for seed in (0, 0, 1):
        trainer = PerRowTrainer(peer_model(), frozen(), 1000)
        taps.append(bench_update.GradientTap(trainer.optimiser))
        for rows in (rows_of_groups(seed), rows_of_groups(5)):  # the second step must leave no trace
            trainer.update(rows, LOSS, OptimiserConfig(grad_clip=0.01))
    same, again, other = (tap.gradient for tap in taps)
    assert bench_update.cosine(same, again) == pytest.approx(1.0)
    assert bench_update.cosine(same, other) < 0.9
    trainer = PerRowTrainer(peer_model(), frozen(), 1000)
    trainer.backward(rows_of_groups(), LOSS)
    fresh = {name: m.grad for name, m in trainer.optimiser.masters.items() if m.grad is not None}
    assert bench_update.cosine(same, fresh) == pytest.approx(1.0)
    with pytest.raises(KeyError, match="different weights"):
        bench_update.cosine(same, {})


# ---- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [GenerateSettings(batch=2), GenerateSettings(cache="dynamic", batch=8)])
def test_generate_writes_what_it_is_asked_for(chosen: GenerateSettings) -> None:
    prompts = [row.prompt_ids for row in rows_of_groups()]
    rows = generate(peer_model(), tiny.tokenizer(), prompts, 7, chosen)
    assert [len(row) for row in rows] == [7] * len(prompts)


def test_continuous_batching_writes_what_it_is_asked_for() -> None:
    prompts = [row.prompt_ids for row in rows_of_groups()]
    model = peer_model()
    rows = generate_batch(model, tiny.tokenizer(), prompts, 7, ContinuousSettings(requests=2, page=8, batch_tokens=64))
    assert [len(row) for row in rows] == [7] * len(prompts)
    assert model.config._attn_implementation == "sdpa"


def test_padding_stands_at_the_left() -> None:
    ids, mask = left_padded([[1, 2, 3], [4]], 0, CPU)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


# ---- episodes ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control product and the limit at a size that costs nothing."""
    monkeypatch.setattr(harness, "CONTROL_SIZE", 32)
    monkeypatch.setattr(limit, "SECONDS_EACH", 0.01)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> BenchSettings:
    """A whole step in miniature, on synthetic text: one paragraph a page."""
    rng = random.Random(0)
    corpus = tmp_path_factory.mktemp("bench") / "pages.jsonl"
    pages = [{"title": f"Page {i}", "text": " ".join(sentence(rng) for _ in range(4))} for i in range(90)]
    corpus.write_text("".join(json.dumps(page) + "\n" for page in pages))
    return BenchSettings(
        model=str(tiny.model_folder("llama")),
        corpus=str(corpus),
        dtype="float32",
        device="cpu",
        group_size=2,
        documents=2,
        chunk_tokens=48,
        memory_tokens=12,
        answer_tokens=6,
        recall_samples=2,
        micro_batch_tokens=1000,
        peer_micro_batch_tokens=300,
        rounds=1,
    )


def test_prompts_share_the_chunk_and_differ_in_the_memory(settings: BenchSettings) -> None:
    turns = write_turns(tiny.tokenizer(), settings, 2)
    assert len(set(turns.prompts)) == len(turns.prompts) == 4
    told = describe(turns)
    assert min(told["shared_tokens_by_group"]) > settings.chunk_tokens
    assert told["prompt_tokens_min"] > min(told["shared_tokens_by_group"])
    assert write_turns(tiny.tokenizer(), settings, 2) == turns


def test_every_round_gives_the_recorded_rows(settings: BenchSettings) -> None:
    engine = load_engine(Place.of(settings), settings)
    recorded = record(engine, settings)
    first = bench_update.rows_of(engine, recorded, settings)
    special = set(engine.tokenizer.all_special_ids)
    assert not special & {token for row in first for token in row.completion_ids}
    replayer = Replayer(engine, recorded)
    again = step_rows(tiny.run(experience_of(replayer, settings)), settings)
    key = bench_step._key
    assert sorted(map(key, again)) == sorted(map(key, first))
    kinds = [row.kind for row in first]
    assert (kinds.count("write"), kinds.count("answer"), kinds.count("recall")) == (4, 2, 4)
    assert replayer.new_tokens == sum(len(row.completion_ids) for row in first)
    assert {len(row.completion_ids) for row in first if row.kind == "write"} == {settings.memory_tokens}
    assert all(abs(row.advantage) >= 0.2 for row in first)
    assert {row.advantage > 0 for row in first} == {True, False}


def test_the_replayer_asks_for_full_length() -> None:
    asked: list[SamplingParams] = []

    class Inner:
        tokenizer = tiny.tokenizer()

        async def sample(self, prompt_ids: Any, params: SamplingParams, n: int = 1) -> list[Completion]:
            asked.append(params)
            return [Completion((9,) * 3, (-1.0,) * 3, "length")] * n

    recorder = Recorder(Inner())
    tiny.run(recorder.sample([1], SamplingParams(3, stop=("x",))))
    assert asked == [endless(SamplingParams(3, stop=("x",)))]
    assert asked[0].ignore_eos
    short = {(1,): [Completion((9,), (-1.0,), "stop")]}
    with pytest.raises(RuntimeError, match="not as long"):
        tiny.run(Replayer(Inner(), short).sample([1], SamplingParams(3)))


# ---- TRL -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_trl_trains_the_given_rows_once(tmp_path: Path) -> None:
    """Over micro-batches and a whole ``train()``: the gradient that reaches the optimiser is ours on the same rows."""
    pytest.importorskip("trl")
    rows, longest = rows_of_groups(), 16
    gradients: dict[str, torch.Tensor] = {}
    asked: list[Any] = []

    def rollout(engine: Any) -> list[Row]:
        asked.append(tiny.run(engine.sample(rows[0].prompt_ids, SamplingParams(3))))
        return rows

    model = peer_model()
    optimiser = OptimiserConfig(grad_clip=0.0)
    trainer = trl.make_trainer(model, tiny.tokenizer(), rollout, 6, 2, 2, LOSS, optimiser, tmp_path, longest)

    from transformers import TrainerCallback

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, *arguments: Any, **rest: Any) -> None:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer.add_callback(Look())
    with torch.no_grad():
        for parameter in trainer.ref_model.parameters():
            parameter.mul_(0.97)
    seconds = trl.step_seconds(trainer)
    assert seconds > 0
    assert len(asked) == 1
    engine = tiny.engine("llama")
    engine._reference = {name: p.detach().clone() for name, p in trainer.ref_model.named_parameters()}
    _, ours = updated(engine, rows, LOSS)
    ours = {name: gradient / longest for name, gradient in ours.items()}  # dr_grpo's constant
    assert relative_error(ours, gradients) < 1e-4
    assert cosine(ours, gradients) > 0.999999


def test_generate_engine_answers_in_order() -> None:
    engine = trl.GenerateEngine(peer_model(), tiny.tokenizer(), GenerateSettings(batch=2))
    import asyncio

    async def go() -> list[list[Completion]]:
        prompts = [row.prompt_ids for row in rows_of_groups()]
        return await asyncio.gather(*(engine.sample(p, SamplingParams(3 + i % 2), 2) for i, p in enumerate(prompts)))

    found = tiny.run(go())
    assert [[len(c.token_ids) for c in some] for some in found] == [[3, 3], [4, 4]] * 3


def test_rows_must_fill_micro_batches(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    with pytest.raises(ValueError, match="do not split into micro-batches"):
        trl.make_trainer(
            peer_model(), tiny.tokenizer(), lambda engine: [], 5, 2, 1, LOSS, OptimiserConfig(), tmp_path, 8
        )


@pytest.mark.filterwarnings("ignore")
def test_a_whole_step_of_both(settings: BenchSettings) -> None:
    pytest.importorskip("trl")
    found = bench_step.bench_step(settings, Progress())
    assert found["skipped"] == {}
    assert set(found["contestants"]) == {bench_step.OURS, bench_step.PEER}
    assert len(set(found["work"]["new_tokens"].values())) == 1
    assert found["contestants"][bench_step.PEER]["seconds"]["median"] > 0


def test_a_step_without_trl_is_ours_alone(settings: BenchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "missing", lambda: "not here, so it is left out")
    found = bench_step.bench_step(settings, Progress())
    assert found["skipped"] == {bench_step.PEER: "not here, so it is left out"}
    assert found["ratios"] == {}


def test_config_is_the_trainers(settings: BenchSettings) -> None:
    loss, optimiser = configs(settings)
    assert (loss.kl_coef, loss.clip_low, optimiser.lr) == (settings.kl_coef, 0.2, 1e-6)


def test_logprobs_do_not_depend_on_neighbours() -> None:
    rows, model = rows_of_groups(), peer_model()
    with torch.no_grad():
        together = completion_logprobs(model, rows, 1.3)
        apart = torch.cat([completion_logprobs(model, [row], 1.3) for row in rows])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
