"""The end-to-end task with a scripted engine."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from scripted_engine import ScriptedEngine
from test_reader import scripted
from tiny_tokenizer import make_tokenizer

from memtrain.memory.prompts import NO_MEMORY, QUESTION, Prompts
from memtrain.memory.reader import read
from memtrain.recipe import MemorySettings
from memtrain.tasks.reconstruction import answer_scores, reconstruction_group, rollout
from memtrain.types import SamplingParams, TrainingDocument

TOKENIZER = make_tokenizer()
PROMPTS = Prompts(TOKENIZER, MemorySettings(style="compact"))
DOCUMENT = TrainingDocument("d", "of Anna of Zoe", "Zoe", "name", (), "p", ("p",), 1, 1, 10)
PARAMS = SamplingParams(max_tokens=40)
CHUNKS = ["of Anna", "of Zoe"]


def test_rollout_ends_with_an_answer_from_memory() -> None:
    engine = ScriptedEngine(TOKENIZER, scripted)
    trajectory = asyncio.run(rollout(engine, PROMPTS, DOCUMENT, CHUNKS, 2, PARAMS, SamplingParams(max_tokens=20)))
    assert [(turn.kind, turn.step) for turn in trajectory.turns] == [("write", 1), ("write", 2), ("answer", 3)]
    assert trajectory.memories == (NO_MEMORY, "Anna", "Anna Zoe")
    assert trajectory.answer == "\\boxed{Anna}"
    assert [params.max_tokens for _, params, _ in engine.sampled] == [40, 40, 20]
    group = reconstruction_group(DOCUMENT, [trajectory, trajectory], [1.0, 0.0])
    assert (group.id, group.kind, group.member_ids) == ("d", "e2e", ("d/2", "d/2"))
    assert [len(turns) for turns in group.members] == [3, 3]


def test_likelihood_form_samples_no_answer() -> None:
    engine = ScriptedEngine(TOKENIZER, scripted)
    trajectory = asyncio.run(read(engine, PROMPTS, QUESTION, CHUNKS, PARAMS, document_id="d", index=0))
    score = asyncio.run(answer_scores(engine, PROMPTS, DOCUMENT, trajectory.memories[-1], step=3))
    assert len(engine.sampled) == 2
    assert score.gain > 0
    assert (score.turn.kind, score.turn.step) == ("answer", 3)
    assert list(score.turn.prompt_ids) == PROMPTS.answer(QUESTION, "Anna Zoe")
    assert score.turn.completion_ids == PROMPTS.target("Zoe").ids
    again = asyncio.run(answer_scores(engine, PROMPTS, DOCUMENT, NO_MEMORY, baseline_logprob=score.baseline_logprob))
    assert again.gain == pytest.approx(0.0)


def test_agents_and_tasks_need_no_torch() -> None:
    code = (
        "import sys, memtrain.tasks.recall, memtrain.tasks.reconstruction, memtrain.tasks.priming, "
        "memtrain.rl.rewards, memtrain.rl.advantages; "
        "sys.exit(int('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
