"""A deterministic engine without a network: what it says is a function of the prompt's text.

For testing the control flow of agents and tasks. It keeps a list of what it was asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memtrain.engines.base import LossConfig, OptimiserConfig, Weights
from memtrain.types import Completion, Row, SamplingParams

IN_PROMPT, NOT_IN_PROMPT = -0.25, -2.0
"""Log-prob of a token whose text does, or does not, stand in the prompt."""


class ScriptedEngine:
    """``reply(prompt text, sample number) -> text``; a completion is its ids and the end token, cut at max_tokens."""

    def __init__(self, tokenizer: Any, reply: Callable[[str, int], str], context_tokens: int = 100_000) -> None:
        self._tokenizer, self._context_tokens, self.reply = tokenizer, context_tokens, reply
        self.sampled: list[tuple[str, SamplingParams, int]] = []
        self.scored: list[tuple[str, str, Weights]] = []
        self.updates: list[tuple[Row, ...]] = []
        self.anchored_at = 0
        self.seeds: list[str] = []

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        await asyncio.sleep(0)  # let others run, as a real engine does
        prompt = self._tokenizer.decode(list(prompt_ids))
        self.sampled.append((prompt, params, n))
        completions = []
        for number in range(n):
            text = self.reply(prompt, number)
            ids = [*self._tokenizer.encode(text, add_special_tokens=False), self._tokenizer.eos_token_id]
            cut = ids[: params.max_tokens]
            reason = "stop" if len(cut) == len(ids) else "length"
            completions.append(Completion(tuple(cut), (-0.5,) * len(cut), reason))
        return completions

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], weights: Weights = "policy"
    ) -> list[float]:
        await asyncio.sleep(0)
        prompt = self._tokenizer.decode(list(prompt_ids))
        self.scored.append((prompt, self._tokenizer.decode(list(completion_ids)), weights))
        pieces = [self._tokenizer.decode([token]) for token in completion_ids]
        return [IN_PROMPT if piece in prompt else NOT_IN_PROMPT for piece in pieces]

    async def update(self, rows: Sequence[Row], loss: LossConfig, optimiser: OptimiserConfig) -> dict[str, float]:
        self.updates.append(tuple(rows))
        return {"rows": float(len(rows))}

    async def reseed(self, seed: str) -> None:
        self.seeds.append(seed)  # nothing here is random

    async def reset_optimiser(self) -> None:
        """Nothing to forget."""

    async def anchor(self) -> None:
        self.anchored_at = len(self.updates)

    async def save(self, folder: Path) -> None:
        (folder / "updates.json").write_text(json.dumps(len(self.updates)))

    async def load(self, folder: Path) -> None:
        self.updates = [()] * json.loads((folder / "updates.json").read_text())

    async def export(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)
