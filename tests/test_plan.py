"""The formulas of a plan by hand and by property, and what the command says. No torch: see ``test_plan_oracles.py``."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain import plan as planner
from memtrain.commands.plan import plan as command
from memtrain.engines.base import LossConfig
from memtrain.errors import UserError
from memtrain.memory.prompts import Prompts
from memtrain.memory.reader import split_chunks
from memtrain.planning import calibrate, compute, cost, hardware, rehearsal, table, work
from memtrain.planning.compute import Training
from memtrain.planning.cost import ABOUT, Assumptions, Place
from memtrain.planning.made_up import MadeUp, passage_tokens
from memtrain.planning.memory import fits, memory
from memtrain.planning.models import KNOWN, ModelShape
from memtrain.planning.paper_engine import EstimatedTokenizer
from memtrain.planning.result import Options
from memtrain.planning.stages import Sources, assumed_lengths, memtrain_stage, qa_stage, training_of
from memtrain.planning.work import DecodeBatch, Passes, Work
from memtrain.recipe import Recipe, load_recipe
from memtrain.tasks.recall import draw_probes
from memtrain.types import Row

DOCS = Path(__file__).parents[1] / "docs" / "plan.md"
H100 = hardware.device("h100")
SMALL = ["documents.related=5", "documents.random=6", "memory.chunk_tokens=600", "memory.memory_tokens=100"]
"""A published recipe in small: 12 paragraphs a document."""


@pytest.fixture(autouse=True)
def _little_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less paper for each stage: what is not played is scaled."""
    monkeypatch.setattr(rehearsal, "ROOM", 60_000)


def llama(**changes: Any) -> ModelShape:
    sizes = {"layers": 4, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 96}
    rest: dict[str, Any] = {"vocabulary": 500, "tied": True, "window": 8192}
    return ModelShape.llama_like("x", **{**sizes, **rest, **changes})


def row(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Row:
    return Row(prompt, completion, logprobs=(-1.0,) * len(completion), advantage=1.0)


# ---- tokens -------------------------------------------------------------------------------------------------------


def test_a_batch_counted_by_hand() -> None:
    stem = tuple(range(100, 140))
    one, other = (*stem, 1, 2, 3), (*stem, 4, 5, 6, 7)
    found = work.sampled([(one, 5, 8), (other, 3, 8)])
    # The last token of a prompt is decoded: 42 and 43 tokens are prefilled, 40 of them shared.
    assert (found.prefill.tokens, found.prefill.separate) == (45, 85)
    assert found.prefill.contexts == sum(range(1, 43)) + sum(range(41, 44))
    (batch,) = found.decode
    assert (batch.sequences, batch.tokens, batch.longest, batch.cached, batch.room) == (2, 8, 5, 45, 9)
    assert batch.contexts == sum(range(43, 48)) + sum(range(44, 47))
    rows = [row(one, (9, 9)), row(other, (9,))]
    trained = work.trained(rows, LossConfig(kl_coef=0.1), 1000)
    assert (trained.train.tokens, trained.train.separate, trained.train.logits) == (40 + 4 + 4, 45 + 45, 3)
    assert trained.reference.tokens == 48
    apart = work.trained(rows, LossConfig(kl_coef=0.0), 50)  # each in a micro-batch of its own
    assert (apart.train.tokens, apart.reference.tokens, apart.largest_pass) == (44 + 44, 0, 44)
    assert (apart.train.passes, trained.train.passes) == (2, 1)
    score = work.scored([(one, (9, 9)), (one, (9, 9)), (other, (9,))], 1000)
    assert (score.score.tokens, score.score.separate) == (48, 44 + 44 + 44)
    doubled = (found + score).times(2).widened(3)
    assert doubled.prefill.tokens == 270
    assert doubled.decoded == 48


def test_a_published_step_by_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences, new tokens and prompt lengths of a GRPO step follow from the recipe's numbers alone."""
    monkeypatch.setattr(rehearsal, "ROOM", 10**9)
    recipe = load_recipe("paper-qwen3-4b", [*SMALL, "train.documents_per_step=2", "train.steps=3", "eval.every=2"])
    sources = Sources.of(KNOWN[recipe.model.name], None)
    evaluation, grpo = memtrain_stage(recipe, sources, Assumptions())
    assert (evaluation.count, grpo.count) == (1 + 1 + 1, 3)  # before, at step 2, after
    tokenizer = sources.tokenizer
    made = MadeUp(tokenizer, passage_tokens(recipe))
    chunks = [split_chunks(made.document(0, 12).text, tokenizer, recipe.memory)]
    turns = len(chunks[0])
    assert turns == 5  # 12 paragraphs of 213 tokens and their headings, 600 at a time
    groups = 3 * 2 * 8
    assert grpo.work.rows == groups * (turns + 1 + 8)
    assert grpo.work.updates == 3
    writes = [batch for batch in grpo.work.decode if batch.room == recipe.memory.memory_tokens + 1]
    answers = [batch for batch in grpo.work.decode if batch.room == recipe.memory.answer_tokens + 1]
    assert sum(batch.sequences * batch.repeat for batch in writes) == groups * turns
    assert sum(batch.tokens * batch.repeat for batch in writes) == pytest.approx(groups * turns * 80, rel=0.02)
    assert sum(batch.sequences * batch.repeat for batch in answers) == groups * (1 + 8)
    assert sum(batch.tokens * batch.repeat for batch in answers) == groups * 9 * 32
    # A write shows the instructions, a chunk, and a memory of 80 tokens (at the first step a few words).
    prompts = Prompts(tokenizer, recipe.memory)
    fixed = prompts.instruction_tokens()
    asked = prompts.count("Which entity does [MASK] stand for, judging by the whole text?")
    document = sum(len(tokenizer.encode(chunk)) for chunk in chunks[0])
    write = turns * (fixed["write"] + asked) + document + (turns - 1) * 80
    # A probe asks a step for a chunk, both drawn uniformly: the last, short chunk is seldom among those read.
    lengths = [len(tokenizer.encode(chunk)) for chunk in chunks[0]]
    probed = fmean(fmean(lengths[:step]) for step in range(1, turns + 1))
    recalled = 8 * (fixed["recall"] + probed + 80)
    expected = groups * (write + recalled + fixed["answer"] + asked + 80)
    assert grpo.work.prefill.separate == pytest.approx(expected, rel=0.05)
    assert grpo.work.train.separate == pytest.approx(
        grpo.work.prefill.separate + groups * (turns + 9) + grpo.work.decoded, rel=1e-6
    )


def test_shared_prefixes_come_from_the_layout() -> None:
    """section-first shares chunks among the trajectories of a group, memory-first hardly anything; sums are alike."""
    found = {}
    for layout in ("section-first", "memory-first"):
        recipe = load_recipe("paper-qwen3-4b", [*SMALL, f"memory.layout={layout}", "train.documents_per_step=1"])
        (_, found[layout]) = memtrain_stage(recipe, Sources.of(KNOWN[recipe.model.name], None), Assumptions())
    shared, apart = found["section-first"].work, found["memory-first"].work
    assert shared.prefill.separate == pytest.approx(apart.prefill.separate, rel=0.01)
    assert shared.decoded == apart.decoded
    assert shared.prefill.tokens < 0.5 * apart.prefill.tokens
    assert shared.train.tokens < 0.8 * apart.train.tokens


@pytest.mark.parametrize("room", [1, 60_000])
def test_what_is_not_played_is_scaled(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(
        "smollm2-135m-gpu", ["train.steps=2", "train.documents_per_step=4", "priming.steps=3", "eval.documents=6"]
    )
    sources = Sources.of(llama(), None)
    monkeypatch.setattr(rehearsal, "ROOM", 10**9)
    whole = memtrain_stage(recipe, sources, Assumptions())
    monkeypatch.setattr(rehearsal, "ROOM", room)
    part = memtrain_stage(recipe, sources, Assumptions())
    for one, other in zip(whole, part, strict=True):
        assert (one.name, one.count, one.work.updates) == (other.name, other.count, other.work.updates)
        for kind in ("prefill", "score", "train"):
            full, scaled = getattr(one.work, kind), getattr(other.work, kind)
            assert scaled.separate == pytest.approx(full.separate, rel=0.1)
            assert scaled.tokens == pytest.approx(full.tokens, rel=0.15)
        assert other.work.decoded == pytest.approx(one.work.decoded, rel=0.1)


def test_kept_groups_thin_out_what_trains() -> None:
    recipe = load_recipe("paper-qwen3-4b", [*SMALL, "train.documents_per_step=2", "train.steps=1"])
    sources = Sources.of(KNOWN[recipe.model.name], None)
    all_of, half = (memtrain_stage(recipe, sources, Assumptions(kept_groups=share))[1].work for share in (1.0, 0.5))
    assert half.rows == all_of.rows / 2
    assert half.decoded == all_of.decoded


def test_the_task_stage_reads_its_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "ROOM", 10**9)
    qa = ["qa.train_tokens=1500", "qa.lengths=[1000, 3000]", "qa.number=7", "qa.train.steps=2"]
    recipe = load_recipe("paper-qwen3-4b", [*SMALL, *qa, "qa.train.documents_per_step=2"])
    from memtrain.task_training import task_recipe

    evaluation, training = qa_stage(recipe, task_recipe(recipe), Sources.of(llama(), None), Assumptions())
    assert not evaluation.trains
    # 2 and 5 chunks of 600 tokens; at both lengths an answer of the reader, of BM25 and of the full context; one
    # without any text.
    assert sum(batch.sequences for batch in evaluation.work.decode) == 7 * (2 + 5 + 2 * 3 + 1)
    assert evaluation.work.decoded == pytest.approx(7 * (7 * 80 + 7 * 32), rel=0.05)
    assert training.work.updates == 2 * min(recipe.qa.train.mini_batches, 2)
    assert training.work.rows == 2 * 2 * 8 * (3 + 1)


@given(st.text(max_size=300))
def test_the_estimate_loses_nothing(text: str) -> None:
    tokenizer = EstimatedTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    spans = tokenizer(text)["offset_mapping"]
    assert "".join(text[a:b] for a, b in spans) == text


def test_made_up_documents_are_as_long_as_the_published_ones() -> None:
    recipe = load_recipe("paper-qwen3-4b")
    tokenizer = EstimatedTokenizer()
    made = MadeUp(tokenizer, passage_tokens(recipe)).document(0, 150)
    assert 24_000 <= len(tokenizer.encode(made.text)) <= 40_000
    chunks = split_chunks(made.text, tokenizer, recipe.memory)
    assert len(draw_probes(made, chunks, 4, random.Random(0))) == 4


@given(fill=st.floats(0.05, 1.0), limit=st.integers(1, 2000))
def test_assumed_memories_have_the_assumed_mean(fill: float, limit: int) -> None:
    recipe = Recipe().model_copy(update={"memory": Recipe().memory.model_copy(update={"memory_tokens": limit})})
    writes = assumed_lengths(recipe, Assumptions(memory_fill=fill)).writes
    assert max(writes) == max(1, round(limit * min(1.0, 2 * fill)))
    assert sum(writes) / len(writes) == pytest.approx(fill * limit, abs=0.03 * limit + 1)


# ---- arithmetic, memory, time -------------------------------------------------------------------------------------


def test_attention_and_decoding_flops_by_hand() -> None:
    shape = llama()
    contexts = Passes.of([tuple(range(30))]).contexts
    assert contexts == 30 * 31 / 2
    assert compute.forward(shape, Passes(contexts=contexts)) == 4 * 4 * 64 * contexts
    batch = DecodeBatch(sequences=2, tokens=10, longest=5, contexts=400, cached=60, room=6)
    assert compute.decoding(shape, batch) == 2 * (shape.body + shape.head) * 10 + 4 * 4 * 64 * 400


def test_parameters_and_kept_bytes_by_hand() -> None:
    shape = llama()
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    assert shape.body == 4 * layer
    assert shape.parameters == 4 * (layer + 2 * 64) + 64 + 500 * 64
    assert shape.lora_parameters(8) == 4 * 8 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    one = Work(train=Passes(tokens=10), updates=1, largest_pass=10)
    need = memory(shape, one, Training(reference=True), H100, 1, 8)
    assert need.kept["weights"] == need.kept["reference"] == 2 * shape.parameters
    assert need.kept["float32 masters"] == need.training["gradients"] == 4 * shape.parameters
    assert need.kept["two moments"] == 8 * shape.parameters
    lora = memory(shape, one, Training(lora_rank=8), H100, 1, 8)
    assert lora.kept["two moments"] == 8 * shape.lora_parameters(8)
    assert lora.kept["float32 masters"] == 0
    assert memory(shape, Work(), Training(), H100, 1, 8).kept["two moments"] == 0  # nothing trains


def test_decoding_is_bound_by_what_it_reads() -> None:
    shape = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    place, training = Place(H100, 1, 256), Training()
    alone = DecodeBatch(sequences=1, tokens=100, longest=100, contexts=0, cached=0, room=100)
    read = 2 * (shape.body + shape.head) * 100 / H100.bandwidth
    assert cost.decode_seconds(alone, shape, training, place) == pytest.approx(read, rel=0.01)
    many = alone.widened(64)  # the same weights serve all of them
    assert cost.decode_seconds(many, shape, training, place) < 1.5 * read
    two_rounds = Place(H100, 1, 32)
    assert cost.decode_seconds(many, shape, training, two_rounds) > 1.9 * read
    tight = Place(H100, 1, 256, cache=32 * 2 * shape.kv_width_all * 100)
    assert tight.decoding_together(many, shape, training) == 32


SHAPES = st.builds(
    llama,
    layers=st.integers(1, 40),
    hidden=st.sampled_from([64, 256, 2048]),
    heads=st.sampled_from([4, 16]),
    intermediate=st.sampled_from([128, 4096]),
    vocabulary=st.integers(500, 150_000),
    tied=st.booleans(),
)
WORKS = st.builds(
    Work,
    prefill=st.builds(Passes, tokens=st.floats(1, 1e6), contexts=st.floats(1, 1e9)),
    decode=st.tuples(
        st.builds(
            DecodeBatch,
            sequences=st.floats(1, 500),
            tokens=st.floats(500, 1e5),
            longest=st.floats(1, 1000),
            contexts=st.floats(1, 1e8),
            cached=st.floats(0, 1e6),
            room=st.floats(1, 2000),
        )
    ),
    score=st.builds(Passes, tokens=st.floats(0, 1e6)),
    train=st.builds(Passes, tokens=st.floats(1, 1e6), contexts=st.floats(1, 1e9), logits=st.floats(1, 1e5)),
    updates=st.just(1.0),
    largest_pass=st.floats(1, 1e5),
)
TRAININGS = st.builds(
    Training,
    lora_rank=st.sampled_from([0, 16]),
    checkpointing=st.booleans(),
    reference=st.booleans(),
    weight_bytes=st.sampled_from([2, 4]),
)


def total(one: Work, shape: ModelShape, training: Training, place: Place) -> float:
    return sum(cost.seconds(one, shape, training, place, Assumptions()).values())


@settings(max_examples=25, deadline=None)
@given(
    shape=SHAPES, one=WORKS, training=TRAININGS, devices=st.integers(1, 64), gpu=st.sampled_from(list(hardware.GPUS))
)
def test_more_devices_need_no_more_memory_each_and_no_more_time(
    shape: ModelShape, one: Work, training: Training, devices: int, gpu: str
) -> None:
    device = hardware.device(gpu)
    few, many = (memory(shape, one, training, device, n, 256) for n in (devices, devices + 1))
    # What the cache may fill grows with the room there is; all else has to shrink.
    assert sum(many.kept.values()) <= sum(few.kept.values()) * (1 + 1e-9)
    assert sum(many.training.values()) <= sum(few.training.values()) * (1 + 1e-9)
    assert many.cache >= few.cache * (1 - 1e-9)
    if fits(few, device):
        assert fits(many, device)
    times = [total(one, shape, training, Place(device, n, 256)) for n in (devices, devices + 1)]
    assert times[1] <= times[0] * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, one=WORKS, training=TRAININGS, steps=st.floats(1, 1000), more=st.floats(1.01, 5))
def test_more_steps_and_larger_models_cost_more(
    shape: ModelShape, one: Work, training: Training, steps: float, more: float
) -> None:
    place = Place(H100, 2, 64)
    assert total(one.times(steps * more), shape, training, place) > total(one.times(steps), shape, training, place)
    deeper = dataclasses.replace(
        llama(layers=shape.layers + 1, hidden=shape.hidden, intermediate=shape.intermediate),
        head=shape.head,
    )
    shallower = dataclasses.replace(
        llama(layers=shape.layers, hidden=shape.hidden, intermediate=shape.intermediate), head=shape.head
    )
    assert total(one, deeper, training, place) > total(one, shallower, training, place)
    needs = [memory(model, one, training, H100, 1, 64) for model in (shallower, deeper)]
    assert sum(needs[0].kept.values()) < sum(needs[1].kept.values())
    assert sum(needs[0].training.values()) < sum(needs[1].training.values())
    lora, whole = (dataclasses.replace(training, lora_rank=rank) for rank in (8, 0))
    assert compute.update(shape, one.train, lora) < compute.update(shape, one.train, whole) + 6 * (
        shape.lora_parameters(8) * one.train.tokens
    )


def test_a_bill_by_hand() -> None:
    found = cost.bill(7200, Place(H100, 4, 8), Assumptions(board_load=0.5, host_share=0.0, pue=2.0), 500, 3.0)
    assert (found.hours, found.device_hours, found.money) == (2.0, 8.0, 24.0)
    assert found.kwh == pytest.approx(8 * 0.7 * 0.5 * 2)
    assert found.co2_kg == pytest.approx(found.kwh * 0.5)


@settings(max_examples=20, deadline=None)
@given(
    prompt=st.integers(40, 400),
    new=st.integers(2, 60),
    spent=st.fixed_dictionaries({kind: st.floats(0.5, 50) for kind in ("sampling", "scoring", "update", "other")}),
    gpu=st.sampled_from(["cpu", "h100"]),
)
def test_measured_steps_add_up_to_themselves(prompt: int, new: int, spent: dict[str, float], gpu: str) -> None:
    """Shares taken from some work and its seconds give these seconds for this work."""
    shape, training = llama(), Training(reference=True)
    asked, said = tuple(range(prompt)), tuple(range(1000, 1000 + new))
    done = [
        work.sampled([(asked, new, 64)] * 3),
        work.scored([(asked, said)], 4096),
        work.trained([row(asked, said)], LossConfig(kl_coef=0.1), 4096),
    ]
    place = Place(dataclasses.replace(hardware.device(gpu), flops=1e9, bandwidth=1e8), 1, 64)
    seen = calibrate.Seen(work=done, seconds=spent, writes=[new], answers=[])
    found = calibrate.calibrate({"grpo": seen}, shape, training, place)
    believed = found.of("evaluation", Assumptions())  # nothing of it was measured: GRPO's stand in
    again = cost.seconds(Work.total(done), shape, training, place, believed)
    assert again["prefill"] + again["decode"] == pytest.approx(spent["sampling"])
    assert again["score"] == pytest.approx(spent["scoring"])
    assert again["reference"] + again["train"] == pytest.approx(spent["update"])
    assert again["other"] == pytest.approx(spent["other"])
    assert found.lengths["grpo"].writes == (new,)


# ---- the command --------------------------------------------------------------------------------------------------


def test_a_published_plan_needs_neither_hub_nor_torch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "plan.json"
    command(
        "paper-qwen3-4b",
        device=("h100", "cpu"),
        devices=8,
        stage=("memtrain", "qa", "compare"),
        price_per_hour=2.0,
        assume=(("memory_fill=0.5", "pue=1.5"),),
        out=out,
        overrides=((*SMALL, "qa.lengths=[1000, 2000]", "qa.train_tokens=1000", "compare.seeds=[0, 1]"),),
    )
    shown = capfd.readouterr().out
    for piece in ("H100 SXM 80GB", "GRPO", "task training", "+ MemTrain + task RL", "kg CO2e", "memory_fill = 0.5"):
        assert piece in shown
    data = json.loads(out.read_text())
    assert data["assumed"]["pue"] == 1.5
    assert [line["name"] for line in data["lines"]] == ["evaluation", "GRPO", "task evaluation", "task training"]
    h100 = data["devices"][0]
    assert h100["fits"]
    hours = h100["bill"]["hours"]
    assert h100["bill"]["money"] == pytest.approx(hours * 8 * 2.0)
    rows = h100["compare_seconds"]
    assert sum(rows.values()) == pytest.approx(hours * 3600)
    stages = h100["seconds"]
    asked, task = (sum(stages[f"qa: task {name}"].values()) for name in ("evaluation", "training"))
    ours = sum(sum(stages[f"memtrain: {name}"].values()) for name in ("evaluation", "GRPO"))
    assert rows["base"] == pytest.approx(asked)  # measured once, whatever the seeds
    assert rows["+ task RL"] == pytest.approx(2 * (asked + task))
    assert rows["+ MemTrain"] == pytest.approx(2 * (asked + ours))
    extra = sum(stages["memtrain: GRPO"].values())
    assert rows["+ task RL, MemTrain's compute added"] == pytest.approx(2 * (asked + extra))


def test_ablations_are_planned_each_by_its_own_recipe() -> None:
    qa = ["qa.lengths=[1000]", "qa.train_tokens=1000", 'compare.ablations=["end-to-end", "likelihood-reward"]']
    recipe = load_recipe("paper-qwen3-4b", [*SMALL, *qa])
    found = planner.plan(recipe, Options(names=["h100"], devices=8, stages=["compare"]))
    times = dict(zip((row.title for row in found.rows), found.on[0].rows, strict=True))
    assert times["ablation: end-to-end, then task RL"] < times["+ MemTrain"] + times["+ MemTrain + task RL"]
    assert len(found.rows) == 5 + 2


def test_what_fits_nowhere_is_a_sentence_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    big = llama(layers=126, hidden=16_384, heads=128, kv_heads=8, head_dim=128, intermediate=53_248, tied=False)
    monkeypatch.setitem(KNOWN, "big", big)
    recipe = load_recipe("paper-qwen3-4b", [*SMALL, "model=big"])
    planner.run(recipe, Options(names=["h100", "rtx-4090"], stages=["memtrain"]))
    shown = capfd.readouterr().out
    assert "does not fit" in shown
    (sentence,) = [line for line in shown.splitlines() if "no named GPU is large enough" in line]
    for piece in (hardware.largest().title, "lacks", "model.lora_rank=16", "sharding over --devices"):
        assert piece in sentence
    named = int(re.findall(r"sharding over --devices (\d+)", sentence)[0])
    again = planner.plan(recipe, Options(names=[hardware.largest().name], devices=named, stages=["memtrain"]))
    assert again.on[0].fits
    assert not any("GPU" in note for note in again.notes)


def test_a_card_that_is_too_small_gets_its_remedies() -> None:
    recipe = load_recipe("paper-qwen2.5-7b", [*SMALL, "train.gradient_checkpointing=false"])
    found = planner.plan(recipe, Options(names=["h100", "rtx-4090"], devices=2, stages=["memtrain"]))
    assert not any(one.fits for one in found.on)
    notes = [note for note in found.notes if "does not fit" in note]
    assert len(notes) == 2
    assert all("lora_rank" in note and "gradient_checkpointing" in note for note in notes)
    shown = table.device_rows(found)
    assert all("does not fit" in row[1] and set(row[2:]) == {"-"} for row in shown[1:])


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({"device": ("h1000",)}, ("h1000", "h100", "cpu")),
        ({"devices": 0}, ("--devices", "at least one")),
        ({"price_per_hour": -1.0}, ("--price-per-hour",)),
        ({"kwh_carbon": -1.0}, ("--kwh-carbon",)),
        ({"assume": (("speed=2",),)}, ("speed", "prefill")),
        ({"assume": (("prefill=fast",),)}, ("prefill", "number")),
        ({"assume": (("prefill=0",),)}, ("prefill", "between")),
        ({"assume": (("train=1.5",),)}, ("train", "between")),
        ({"overrides": (("qa.kind=search",),), "stage": ("qa",)}, ("qa.kind", "long")),
        ({"overrides": (("train.step=3",),)}, ("train.step", "'steps'")),
    ],
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], pieces: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        command("paper-qwen3-4b", **options)
    assert all(piece in str(error.value) for piece in pieces)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_model_that_cannot_be_read_is_one_sentence(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read") as error:
        command("paper-qwen3-4b", overrides=((f"model={tmp_path}",),))
    assert "\n" not in str(error.value)
    assert "Qwen/Qwen3-4B-Instruct-2507" in str(error.value)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "./no/such/folder", "no such model"])
def test_a_model_that_is_not_there_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be read") as error:
        command("paper-qwen3-4b", overrides=((f"model={name}",),))
    assert "\n" not in str(error.value)


def test_the_default_stages_follow_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(planner, "_lines", lambda recipe, stages, *rest: seen.append(stages) or [])
    for source, kind in (("", "long"), ("hotpot.json", "long"), ("hotpot.json", "search")):
        recipe = load_recipe("paper-qwen3-4b", [f"qa.questions={source!r}", f"qa.kind={kind!r}"])
        with pytest.raises((ValueError, IndexError)):
            planner.plan(recipe, Options(names=["h100"]))
    assert seen == [("memtrain",), ("memtrain", "qa", "compare"), ("memtrain",)]


# ---- what the documentation says ----------------------------------------------------------------------------------


def test_every_assumption_and_every_device_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    defaults = dataclasses.asdict(Assumptions())
    assert set(ABOUT) == set(defaults)
    for name, value in defaults.items():
        assert f"| `{name}` | {value:g} |" in text, name
    for name, device in hardware.GPUS.items():
        cells = f"| `{name}` | {device.title} | {device.flops / 1e12:g} | {device.bandwidth / 1e12:g} | "
        assert f"{cells}{device.memory / 1e9:g} | {device.watts:g} | {device.year} |" in text, name


def test_nothing_here_has_imported_torch() -> None:
    """Where this file runs alone, nothing before it has."""
    code = (
        "import sys\n"
        "from memtrain import plan\n"
        "from memtrain.planning.result import Options\n"
        "from memtrain.recipe import load_recipe\n"
        f"plan.plan(load_recipe('paper-qwen3-4b', {SMALL!r}), Options(names=['h100'], stages=['memtrain']))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_training_settings_follow_the_recipe() -> None:
    recipe = load_recipe("paper-qwen3-4b", ["model.lora_rank=4", "model.dtype=float32", "train.kl_coef=0"])
    assert training_of(recipe) == Training(lora_rank=4, checkpointing=True, reference=False, weight_bytes=4)
