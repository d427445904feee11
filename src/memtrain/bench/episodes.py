"""The rows of a real joint step, made by the project's own episode code, and the same for everyone.

An engine that samples gives other texts every time, and with them other rows. So one rollout is recorded first,
unmeasured. Measured steps sample in full (same prompts, same number of new tokens, end tokens ignored), and what was
recorded goes on in place of what was drawn: prompts, rewards and rows are the same for everyone in every round.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memtrain.bench.settings import BenchSettings, recipe_of
from memtrain.bench.workload import training_documents
from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.memory.prompts import Prompts
from memtrain.rl.experience import Experience, collect
from memtrain.types import Completion, Group, Row, SamplingParams

Recorded = dict[tuple[int, ...], list[Completion]]


class Endless:
    """An engine whose completions never stop early."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @property
    def tokenizer(self) -> Any:
        return self.inner.tokenizer

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """To the last token."""
        return list(await self.inner.sample(prompt_ids, endless(params), n))


class Recorder(Endless):
    """An engine that writes down what it samples.

    End and other special tokens become line breaks: a memory then keeps its whole length, as a trained model's does.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.recorded: Recorded = {}
        tokenizer = inner.tokenizer
        self._special = set(tokenizer.all_special_ids)
        [self._break] = tokenizer.encode("\n", add_special_tokens=False)[-1:]

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """Sample, and keep."""
        drawn = await super().sample(prompt_ids, params, n)
        kept = [
            Completion(
                tuple(self._break if token in self._special else token for token in completion.token_ids),
                completion.logprobs,
                "length",
            )
            for completion in drawn
        ]
        self.recorded.setdefault(tuple(prompt_ids), []).extend(kept)
        return kept


class Replayer(Endless):
    """An engine that samples in full and hands on what was recorded."""

    def __init__(self, inner: Any, recorded: Recorded) -> None:
        super().__init__(inner)
        self.recorded = recorded
        self._given: dict[tuple[int, ...], int] = {}
        self.new_tokens = 0

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """Sample, throw away, give the recording. Raises KeyError for a prompt that was not recorded."""
        prompt = tuple(prompt_ids)
        first = self._given.get(prompt, 0)
        self._given[prompt] = first + n
        recorded = self.recorded[prompt][first : first + n]
        drawn = await super().sample(prompt_ids, params, n)
        lengths = [len(completion.token_ids) for completion in drawn]
        if lengths != [len(completion.token_ids) for completion in recorded]:
            raise RuntimeError(f"recorded completions are not as long as sampled ones: {lengths}")
        self.new_tokens += sum(lengths)
        return recorded


def endless(params: SamplingParams) -> SamplingParams:
    """The same request, to its last token."""
    return replace(params, ignore_eos=True, stop=())


def record(engine: Any, settings: BenchSettings) -> Recorded:
    """One unmeasured rollout of the step's episodes."""
    recorder = Recorder(engine)
    asyncio.run(experience_of(recorder, settings))
    return recorder.recorded


async def experience_of(engine: Any, settings: BenchSettings) -> Experience:
    """Rollouts, recall and rewards of one step on the first document, by ``rl.experience``."""
    recipe = recipe_of(settings)
    prompts = Prompts(engine.tokenizer, recipe.memory)
    return await collect(engine, prompts, training_documents(settings)[:1], recipe, 1)


def step_rows(experience: Experience, settings: BenchSettings) -> list[Row]:
    """All rows of the step: groups are kept whatever their rewards, advantages are drawn from the seed.

    A model that was not trained earns the same reward everywhere, and a real step would drop every group.
    """
    groups = [group for episode in experience.episodes for group in episode.groups]
    return [row for group in groups for row in _rows(group, settings.seed)]


def _rows(group: Group, seed: int) -> list[Row]:
    rng = random.Random(f"{seed}/{group.id}/advantages")
    rows = []
    for turns in group.members:
        advantage = rng.choice((-1, 1)) * rng.uniform(0.2, 1.0)
        for turn in turns:
            ids = {"group_id": group.id, "step": turn.step, "kind": turn.kind}
            rows.append(Row(turn.prompt_ids, turn.completion_ids, turn.logprobs, advantage, **ids))  # type: ignore[arg-type]
    return rows


def configs(settings: BenchSettings) -> tuple[LossConfig, OptimiserConfig]:
    """Loss and optimiser of the step, as the trainer would set them."""
    train = recipe_of(settings).train
    loss = LossConfig(clip_low=train.clip_low, clip_high=train.clip_high, kl_coef=train.kl_coef)
    return loss, OptimiserConfig(lr=train.lr, weight_decay=train.weight_decay, grad_clip=train.grad_clip)


def describe_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts by kind, and tokens of the separate rows."""
    kinds = sorted({row.kind for row in rows})
    return {
        "rows": {kind: sum(row.kind == kind for row in rows) for kind in kinds},
        "tokens_separate": sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows),
        "completion_tokens": sum(len(row.completion_ids) for row in rows),
        "longest_row": max(len(row.prompt_ids) + len(row.completion_ids) for row in rows),
    }
