"""Recall probes: what may be asked, how often, and what an answer scores."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import IN_PROMPT, NOT_IN_PROMPT, ScriptedEngine
from tiny_tokenizer import make_tokenizer

from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.recipe import MemorySettings
from memtrain.tasks.recall import draw_probes, hide, recall_answers, recall_group, recall_scores
from memtrain.types import Mention, Probe, SamplingParams, TrainingDocument

CHUNKS = (
    "Document 1:\nAnna met Boris in Ulm. Anna left for the U.S. with $5 million.",
    "Document 2:\n[MASK] knew Clara, and 40% of Ulm.",
    "Document 3:\nnothing of note was seen there",
    "Document 4:\nDmitri wrote to Elena about Boris and BORIS.",
)
NAMES = ("Anna", "Boris", "Ulm", "U.S.", "$5 million", "Clara", "40%", "Dmitri", "Elena")
DOCUMENT = TrainingDocument(
    id="d",
    text="\n\n".join(CHUNKS),
    answer="Fyodor",
    answer_kind="name",
    aliases=("Fedor",),
    pivot_id="p",
    passage_ids=("p",),
    seed=1,
    n_masks=1,
    n_tokens=80,
    mentions=tuple(Mention(name, "name") for name in NAMES),
)


def test_every_probe_asks_what_its_memory_has_read() -> None:
    probes = draw_probes(DOCUMENT, CHUNKS, 200, random.Random(0))
    assert len(probes) == len({(probe.step, probe.chunk, probe.answer) for probe in probes})
    # All there is: chunk 0 holds 5 askable entities (steps 1-4), chunk 1 three (2-4), chunk 3 two (step 4: "Boris"
    # stays readable there as BORIS).
    assert len(probes) == 5 * 4 + 3 * 3 + 2 * 1
    for probe in probes:
        assert 0 <= probe.chunk < probe.step <= len(CHUNKS)
        assert probe.answer in CHUNKS[probe.chunk]
        assert probe.answer not in probe.masked_chunk
        assert probe.masked_chunk.replace("[TARGET]", probe.answer) == CHUNKS[probe.chunk]
        assert probe.kind == "name"
    assert {probe.answer for probe in probes} == set(NAMES)


def test_last_asks_the_last_memory_for_every_chunk() -> None:
    probes = draw_probes(DOCUMENT, CHUNKS, 200, random.Random(0), last=True)
    assert {probe.step for probe in probes} == {len(CHUNKS)}
    assert len(probes) == 5 + 3 + 2  # every askable entity of every chunk, once
    first = [draw_probes(DOCUMENT, CHUNKS, 1, random.Random(seed), last=True)[0].chunk for seed in range(900)]
    share = [first.count(chunk) / 900 for chunk in (0, 1, 3)]
    assert all(abs(value - 1 / 3) < 0.06 for value in share)  # chunk 2 holds nothing to ask


def test_all_occurrences_are_hidden() -> None:
    assert hide(CHUNKS[0], "Anna") == CHUNKS[0].replace("Anna", "[TARGET]")
    assert hide(CHUNKS[0], "U.S.") == CHUNKS[0].replace("U.S.", "[TARGET]")
    assert hide(CHUNKS[0], "Zoe") is None
    assert hide(CHUNKS[3], "Boris") is None
    assert hide(CHUNKS[0], "1") is None  # would hide the heading's number


def test_forbidden_entities_are_never_asked() -> None:
    chunks = ("Fedor, fyodor, [MASK] and [TARGET] met {odd} Anna",)
    mentions = tuple(
        Mention(text) for text in ("Fedor", "fyodor", "[MASK]", "MASK", "[TARGET]", "{odd", "Anna", "Anna")
    )
    probes = draw_probes(replace(DOCUMENT, mentions=mentions), chunks, 50, random.Random(0))
    assert [probe.answer for probe in probes] == ["Anna"]


def test_nothing_to_ask() -> None:
    assert draw_probes(replace(DOCUMENT, mentions=()), CHUNKS, 4, random.Random(0)) == []
    assert draw_probes(DOCUMENT, (), 4, random.Random(0)) == []
    assert draw_probes(DOCUMENT, CHUNKS, 0, random.Random(0)) == []
    assert draw_probes(DOCUMENT, CHUNKS[2:3], 4, random.Random(0), spread=True) == []


@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), spread=st.booleans())
@settings(deadline=None)
def test_same_seed_same_probes(seed: int, n: int, spread: bool) -> None:
    first = draw_probes(DOCUMENT, CHUNKS, n, random.Random(seed), spread=spread)
    assert first == draw_probes(DOCUMENT, CHUNKS, n, random.Random(seed), spread=spread)
    assert len(first) == n


def test_uniform_over_steps_chunks_and_entities() -> None:
    chunks = [f"Alpha{i} and Beta{i} and Gamma{i}" for i in range(4)]
    mentions = tuple(Mention(f"{name}{i}") for i in range(4) for name in ("Alpha", "Beta", "Gamma"))
    document = replace(DOCUMENT, mentions=mentions)
    rng, n = random.Random(7), 6000
    drawn = [draw_probes(document, chunks, 1, rng)[0] for _ in range(n)]
    steps = Counter(probe.step for probe in drawn)
    assert all(abs(steps[step] / n - 1 / 4) < 0.025 for step in range(1, 5))
    pairs = Counter((probe.step, probe.chunk) for probe in drawn)
    assert all(abs(pairs[step, place] / n - 1 / 4 / step) < 0.025 for step in range(1, 5) for place in range(step))
    names = Counter(probe.answer[:-1] for probe in drawn)
    assert all(abs(count / n - 1 / 3) < 0.025 for count in names.values())


def test_spread_covers_the_distances_evenly() -> None:
    chunks = [f"Alpha{i} and Beta{i} and Gamma{i}" for i in range(4)]
    mentions = tuple(Mention(f"{name}{i}") for i in range(4) for name in ("Alpha", "Beta", "Gamma"))
    document = replace(DOCUMENT, mentions=mentions)
    for seed in range(20):
        probes = draw_probes(document, chunks, 8, random.Random(seed), spread=True)
        assert Counter(probe.distance for probe in probes) == {0: 2, 1: 2, 2: 2, 3: 2}


TOKENIZER = make_tokenizer()
PROMPTS = Prompts(TOKENIZER, MemorySettings(style="compact"))
PROBE = Probe("d", 2, 0, "who met [TARGET]?", "Zoe", "name")


def test_likelihood_gain_by_hand() -> None:
    engine = ScriptedEngine(TOKENIZER, lambda *_: "")
    target = PROMPTS.target("Zoe")
    scored = [TOKENIZER.decode([token]) for token in target.ids[target.scored]]
    assert "".join(scored) == "Zoe}"
    score = asyncio.run(recall_scores(engine, PROMPTS, "notes on Zoe", PROBE))

    def expected(prompt: list[int]) -> float:
        text = TOKENIZER.decode(prompt)
        return sum(IN_PROMPT if piece in text else NOT_IN_PROMPT for piece in scored)

    assert score.logprob == pytest.approx(expected(PROMPTS.recall("notes on Zoe", PROBE.masked_chunk)))
    assert score.baseline_logprob == pytest.approx(expected(PROMPTS.recall(NO_MEMORY, PROBE.masked_chunk)))
    assert score.gain == pytest.approx(score.logprob - score.baseline_logprob)
    assert score.gain > 0
    assert score.n_tokens == len(scored)
    assert score.gain_per_token == pytest.approx(score.gain / len(scored))
    assert score.turn.completion_ids == target.ids
    assert len(score.turn.logprobs) == len(target.ids)
    assert (score.turn.kind, score.turn.step, score.turn.text) == ("recall", 2, "\\boxed{Zoe}")
    assert asyncio.run(recall_scores(engine, PROMPTS, "", PROBE)).gain == 0.0


def test_a_known_baseline_saves_a_pass() -> None:
    engine = ScriptedEngine(TOKENIZER, lambda *_: "")
    score = asyncio.run(recall_scores(engine, PROMPTS, "Zoe", PROBE, weights="reference", baseline_logprob=-3.0))
    assert score.baseline_logprob == -3.0
    assert [weights for _, _, weights in engine.scored] == ["reference"]


def test_sampled_answers_form_a_group() -> None:
    engine = ScriptedEngine(TOKENIZER, lambda _, number: f"\\boxed{{{['Zoe', 'Anna', 'Zoe'][number]}}}")
    turns = asyncio.run(recall_answers(engine, PROMPTS, "Zoe", PROBE, SamplingParams(max_tokens=30), 3))
    assert [turn.text for turn in turns] == ["\\boxed{Zoe}", "\\boxed{Anna}", "\\boxed{Zoe}"]
    assert len(engine.sampled) == 1  # one call: the engine sees that the prompt is shared
    group = recall_group("d", 5, 1, turns, [1.0, 0.0, 1.0])
    assert (group.id, group.kind, group.member_ids) == ("d/5/1", "recall", ("d/5",) * 3)
    assert [members[0].text for members in group.members] == [turn.text for turn in turns]
