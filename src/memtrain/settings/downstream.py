"""Settings of what comes after MemTrain: task training on questions, and the comparison of whole runs.

Defaults are MemTrain's published long-text QA set-up (arXiv 2606.03197, appendix), which is MemAgent's (arXiv
2507.02259): HotpotQA, the reader agent, exact match.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from memtrain.settings.base import RewardKind, Section
from memtrain.settings.training import TrainSettings

Ablation = Literal[
    "end-to-end",
    "decoupled",
    "exact-reward",
    "likelihood-reward",
    "unpaired-probes",
    "memory-first",
    "no-priming",
    "priming-only",
    "cloze-priming",
]


class QaSettings(Section):
    """Task training and its evaluation: questions, the texts they are asked about, the reward, the steps."""

    kind: Literal["long", "search"] = "long"
    """long: the reader on texts around gold paragraphs; search: the searcher on a passage index (table ``search``)."""
    questions: str = ""
    """Question file (HotpotQA, 2WikiMultihopQA, MuSiQue, SQuAD, XQuAD, NQ) or ``hf:dataset[:config[:split]]``."""
    eval_questions: str = ""
    """Questions of the evaluation; empty: a share of ``questions`` that training never sees."""
    passages: tuple[str, ...] = ()
    """Distractor files; empty: the paragraphs that come with the questions."""
    held_out: float = Field(0.3, gt=0, lt=1)
    """Share kept for evaluation where ``eval_questions`` is empty; by hash of the gold paragraphs, so that none is on
    both sides."""
    train_tokens: int = Field(28_000, ge=16)
    """Length of the training texts in tokens."""
    lengths: tuple[int, ...] = (7_000, 14_000, 28_000, 56_000, 112_000, 224_000, 448_000, 896_000)
    """Lengths of the evaluation in tokens."""
    number: int = Field(128, ge=2)
    """Questions of the evaluation."""
    reward: RewardKind = "exact"
    """Reward of the final answer."""
    train: TrainSettings = TrainSettings(steps=500, mini_batches=4, old_logprobs="sampler")
    """GRPO on the task."""

    @model_validator(mode="after")
    def _lengths_ascend(self) -> QaSettings:
        if not self.lengths or min(self.lengths) < 1 or len(set(self.lengths)) < len(self.lengths):
            raise ValueError("lengths must be different numbers of tokens, at least one")
        return self


class CompareSettings(Section):
    """``memtrain compare``: which whole runs stand beside each other."""

    seeds: tuple[int, ...] = (0,)
    """Every row is trained once with each of them."""
    equal_compute: bool = True
    """Also task training alone with the seconds of the MemTrain stage added as steps."""
    ablations: tuple[Ablation, ...] = ()
    """Variants of the MemTrain stage, each followed by the same task training."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> CompareSettings:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be different whole numbers, at least one")
        return self
