"""Plans against what really happens: tokens of a real run, FLOPs and activations of torch, weights that are there."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from memtrain import plan as planner
from memtrain.corpus import documents as corpus_documents
from memtrain.engines.torch import prefill, sampling
from memtrain.engines.torch.forward import CompletionBatch, completion_logprobs
from memtrain.planning import calibrate, compute, work
from memtrain.planning.calibrate import Recorder
from memtrain.planning.compute import Training
from memtrain.planning.made_up import MadeUp
from memtrain.planning.memory import activations
from memtrain.planning.models import KNOWN, shape_of, shape_of_model
from memtrain.planning.paper_engine import Lengths
from memtrain.planning.rehearsal import Player
from memtrain.planning.result import Options
from memtrain.planning.work import Passes, Work
from memtrain.recipe import ModelSettings, Recipe
from memtrain.report.console import Screen
from memtrain.rl.checkpoint import RunFolder
from memtrain.rl.trainer import Trainer

# ---- tokens, against real runs ------------------------------------------------------------------------------------


def player(recipe: Recipe, lengths: Lengths) -> Player:
    tokenizer = tiny.tokenizer()
    stock = MadeUp(tokenizer, 50).stock(2000)
    return Player(recipe, tokenizer, tiny.CONTEXT, lengths, stock)


def test_a_played_run_makes_the_tokens_of_a_real_one() -> None:
    """Priming has no memory to guess, so it agrees to the token; GRPO as far as the memories are as long as assumed."""
    run, recipe = tiny_run.unbroken(), tiny_run.small()
    lines = tiny_run.metrics(run)
    documents = corpus_documents.load(run / "documents", "train")
    primed = [line for line in lines if line["stage"] == "priming"]
    grpo = [line for line in lines if line["stage"] == "grpo"]
    made = player(recipe, Lengths((8,), (8,)))
    priming = made.priming(documents)
    assert priming.train.tokens == sum(line["tokens_packed"] for line in primed)
    assert priming.train.separate == sum(line["tokens_separate"] for line in primed)
    assert (priming.rows, priming.updates) == (sum(line["rows"] for line in primed), len(primed))
    played = made.grpo(documents)
    assert played.rows == sum(line["rows"] for line in grpo)
    assert played.updates == len(grpo)
    # A random model's 8 tokens are no words: shown again they are tokenised to some more, or fewer.
    assert played.train.separate == pytest.approx(sum(line["tokens_separate"] for line in grpo), rel=0.1)
    assert played.train.tokens == pytest.approx(sum(line["tokens_packed"] for line in grpo), rel=0.1)


def test_a_recorder_counts_what_the_engine_counts() -> None:
    run, recipe = tiny_run.unbroken(), tiny_run.small(log={"samples": 0})
    documents = corpus_documents.load(run / "documents", "train")
    engine = tiny.engine("llama", micro_batch_tokens=recipe.train.micro_batch_tokens)
    recorder = Recorder(engine, recipe)
    trainer = Trainer(recorder, recipe, documents, RunFolder(run), Screen())
    recorder.start()
    metrics = asyncio.run(trainer.grpo_step(1))
    seen = recorder.stop()
    total = Work.total(seen.work)
    assert (total.train.tokens, total.train.separate) == (metrics["tokens_packed"], metrics["tokens_separate"])
    assert total.rows == metrics["rows"]
    assert total.decoded == engine.tokens_sampled == sum(seen.writes)
    assert sum(seen.writes) / len(seen.writes) == metrics["memory_tokens"]
    assert set(seen.seconds) == {"sampling", "scoring", "update", "other"}
    assert 0 < total.reference.tokens < total.train.tokens  # micro-batches of known answers alone need no reference


def test_constants_are_the_engines() -> None:
    assert (work.PREFILL_TOKENS, work.MIN_SHARED) == (prefill.PREFILL_TOKENS, sampling.MIN_SHARED)


# ---- FLOPs, against torch's own count -----------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "checkpointing"), [(0, False), (0, True), (4, False)])
def test_training_flops_are_what_torch_counts(rank: int, checkpointing: bool, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model", "llama", num_hidden_layers=6)
    engine = tiny.engine(folder, lora_rank=rank, gradient_checkpointing=checkpointing)
    rows = tiny.joint_rows()[:6]
    batch = CompletionBatch.of([row.prompt_ids for row in rows], [row.completion_ids for row in rows])
    with FlopCounterMode(display=False) as counter:
        completion_logprobs(engine.loaded, batch).sum().backward()
    counted: dict[Any, int] = counter.get_flop_counts()["Global"]
    linear = sum(flops for op, flops in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    shape = shape_of(ModelSettings(name=str(folder)))[0]
    assert shape.body == sum(
        m.weight.numel()
        for name, m in engine.loaded.base.named_modules()
        if isinstance(m, torch.nn.Linear) and "lora" not in name and name != "lm_head"
    )
    passes = Passes(tokens=batch.tree.n_tokens, logits=len(batch.target))  # no contexts: attention apart
    found = compute.update(shape, passes, Training(lora_rank=rank, checkpointing=checkpointing))
    # LoRA: nobody asks for the gradient of the first layer's input.
    assert found == pytest.approx(linear, rel=0.06 if rank else 1e-9)


# ---- shapes and memory --------------------------------------------------------------------------------------------

QWEN = {
    "Qwen/Qwen3-4B-Instruct-2507": ("qwen3", {"max_position_embeddings": 262_144}, 4_022_468_096),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", {"max_position_embeddings": 32_768}, 7_615_616_512),
}


@pytest.mark.parametrize("name", list(KNOWN))
def test_known_shapes_are_transformers_own(name: str) -> None:
    """Counted from the architecture itself, without weights; and the number of weights that the model cards give."""
    kind, options, weights = QWEN[name]
    known = KNOWN[name]
    heads = known.attention_width // 128
    config = AutoConfig.for_model(
        kind,
        vocab_size=known.head // known.hidden,
        hidden_size=known.hidden,
        intermediate_size=known.intermediate,
        num_hidden_layers=known.layers,
        num_attention_heads=heads,
        num_key_value_heads=known.kv_width // 128,
        head_dim=128,
        tie_word_embeddings=name.startswith("Qwen/Qwen3"),
        **options,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert dataclasses.replace(shape_of_model(model), name=name, source=known.source) == known
    assert known.parameters == weights


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3"])
def test_weights_are_counted_from_the_config_alone(family: str) -> None:
    folder = tiny.model_folder(family)
    shape, tokenizer = shape_of(ModelSettings(name=str(folder)))
    model = tiny.engine(family).loaded.model
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert tokenizer is not None


def test_lora_weights_are_pefts() -> None:
    shape = shape_of(ModelSettings(name=str(tiny.model_folder("llama"))))[0]
    adapted = tiny.engine("llama", lora_rank=4).loaded.model
    assert shape.lora_parameters(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize(("family", "dtype"), [("llama", "bfloat16"), ("qwen3", "bfloat16"), ("llama", "float32")])
def test_a_layers_activations_are_what_autograd_keeps(family: str, dtype: str, tmp_path: Path) -> None:
    """Two depths apart, so that what is kept once cancels; wide enough that sums a token do not matter."""
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    if family == "qwen3":
        sizes["head_dim"] = 64
    kept = []
    for layers in (1, 3):
        folder = tiny.save_model(tmp_path / str(layers), family, num_hidden_layers=layers, **sizes)
        engine = tiny.engine(folder, dtype=dtype)
        weights = {p.untyped_storage().data_ptr() for p in engine.loaded.model.parameters()}
        row = tiny.joint_rows()[0]
        batch = CompletionBatch.of([row.prompt_ids * 4], [row.completion_ids])
        seen: dict[int, Any] = {}

        def keep(tensor: Any, seen: dict[int, Any] = seen, weights: set[int] = weights) -> Any:
            place = tensor.untyped_storage().data_ptr()
            if place not in weights:
                seen[place] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprobs = completion_logprobs(engine.loaded, batch)
        kept.append(sum(t.untyped_storage().nbytes() for t in seen.values()))
        assert logprobs.requires_grad
    shape = shape_of(ModelSettings(name=str(folder)))[0]
    one = dataclasses.replace(shape, layers=1)
    training = Training(weight_bytes=2 if dtype == "bfloat16" else 4)
    assert activations(one, batch.tree.n_tokens, training) == pytest.approx((kept[1] - kept[0]) / 2, rel=0.05)


# ---- measured -----------------------------------------------------------------------------------------------------


def test_measuring_predicts_the_run_it_was_taken_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not how long a run takes, which a shared machine decides, but that the measured steps add up to themselves."""
    monkeypatch.chdir(tmp_path)
    recipe = tiny_run.small(log={"samples": 0})
    found = planner.plan(recipe, Options(names=["cpu"], measure=True))
    here, unmeasured = found.on
    assert here.place.device.title == "this machine, measured"
    assert [line.name for line in found.lines] == ["evaluation", "priming", "GRPO"]
    assert set(here.measured) == {"priming", "grpo", "evaluation"}
    spent = sum(here.measured["grpo"].values()) / (calibrate.GRPO_STEPS - 1)
    predicted = sum(here.seconds[2].values()) / recipe.train.steps
    assert predicted == pytest.approx(spent, rel=0.6)  # other documents, other lengths of memories
    assert here.efficiencies["grpo"] != unmeasured.efficiencies
    assert not found.notes
    assert not list(tmp_path.iterdir())
