"""An engine without a model: it says text of assumed length and counts. What runs on it is the real code.

So a plan cannot forget a pass that training makes: the same rollouts, probes, rewards' questions, prompts and rows are
made as in a run, and the work of each batch is counted by ``work.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from memtrain.engines.base import LossConfig, OptimiserConfig, Weights
from memtrain.engines.torch.batching import Batcher, together
from memtrain.memory.prompts import Prompts
from memtrain.planning.work import Work, sampled, scored, trained
from memtrain.recipe import Recipe
from memtrain.types import Completion, Row, SamplingParams

_PIECES = re.compile(r"\s*[^\W_]{1,6}|\s*[^\w\s]|\s*_|\s+")


class EstimatedTokenizer:
    """For models whose tokenizer is not at hand: a token for six letters begun, one a sign. Lossless both ways."""

    chat_template = None
    eos_token_id = 0
    bos_token_id = None
    all_special_tokens: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._ids: dict[str, int] = {"": 0}
        self._texts = [""]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids, made as pieces are met."""
        return [self._id(piece) for piece in _PIECES.findall(text)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        """The text again."""
        return "".join(self._texts[token] for token in token_ids)

    def apply_chat_template(self, conversation: Any, **_: Any) -> Any:
        """There is none."""
        raise ValueError("an estimate has no chat template")

    def __call__(self, text: Any, **options: Any) -> dict[str, Any]:
        """As a transformers tokenizer: ids and where they stand, of one text or several."""
        if not isinstance(text, str):
            return {"input_ids": [self.encode(one) for one in text]}
        spans = [match.span() for match in _PIECES.finditer(text)]
        return {"input_ids": [self._id(text[a:b]) for a, b in spans], "offset_mapping": spans}

    def _id(self, piece: str) -> int:
        found = self._ids.get(piece)
        if found is None:
            found = self._ids[piece] = len(self._texts)
            self._texts.append(piece)
        return found


@dataclass(frozen=True)
class Lengths:
    """How long completions are, in tokens with the end token; taken in turn."""

    writes: tuple[int, ...]
    """Memories."""
    answers: tuple[int, ...]
    """Answers of every kind."""


class PaperEngine:
    """The engine protocol (``engines/base.py``) over no weights at all."""

    def __init__(self, tokenizer: Any, context_tokens: int, recipe: Recipe, lengths: Lengths, stock: Sequence[int]):
        """``stock``: token ids of ordinary text, which memories are cut from; twice the longest memory at least."""
        self._tokenizer, self._context_tokens, self._stock = tokenizer, context_tokens, stock
        self._budget = recipe.train.micro_batch_tokens
        self._writes, self._answers = cycle(lengths.writes), cycle(lengths.answers)
        prompts = Prompts(tokenizer, recipe.memory)
        self._cue = write_cue(prompts)
        self._ends = list(prompts.format.end_ids)
        self._at = 0
        self.work = Work()
        self.parts: list[Work] = []
        self._samples: Batcher[tuple[tuple[int, ...], SamplingParams], Completion] = Batcher(together(self._sample))
        self._scores: Batcher[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = Batcher(together(self._score))

    @property
    def tokenizer(self) -> Any:
        """What texts are counted with."""
        return self._tokenizer

    @property
    def context_tokens(self) -> int:
        """The model's window."""
        return self._context_tokens

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """Text of the assumed length, different every time."""
        import asyncio

        request = (tuple(prompt_ids), params)
        return list(await asyncio.gather(*(self._samples.ask(request) for _ in range(n))))

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], weights: Weights = "policy"
    ) -> list[float]:
        """A constant a token."""
        return await self._scores.ask((tuple(prompt_ids), tuple(completion_ids)))

    async def update(self, rows: Sequence[Row], loss: LossConfig, optimiser: OptimiserConfig) -> dict[str, float]:
        """Counts."""
        self.parts.append(trained(rows, loss, self._budget))
        return {"rows": float(len(rows))}

    async def reseed(self, seed: str) -> None:
        """Nothing is drawn."""

    async def anchor(self) -> None:
        """Nothing to keep."""

    async def reset_optimiser(self) -> None:
        """Nothing to forget."""

    async def save(self, folder: Path) -> None:
        """Nothing to write."""

    async def load(self, folder: Path) -> None:
        """Nothing to read."""

    async def export(self, folder: Path) -> None:
        """Nothing to write."""

    def take(self) -> Work:
        """The work since the last call."""
        work, self.parts = Work.total(self.parts), []
        return work

    def _sample(self, requests: list[tuple[tuple[int, ...], SamplingParams]]) -> list[Completion]:
        completions = [self._complete(prompt, params) for prompt, params in requests]
        lengths = [len(completion.token_ids) for completion in completions]
        self.parts.append(
            sampled([(p, n, params.max_tokens) for (p, params), n in zip(requests, lengths, strict=True)])
        )
        return completions

    def _score(self, requests: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[float]]:
        self.parts.append(scored(requests, self._budget))
        return [[-1.0] * len(completion) for _, completion in requests]

    def _complete(self, prompt: tuple[int, ...], params: SamplingParams) -> Completion:
        write = ends_with(prompt, self._cue)
        n = min(next(self._writes if write else self._answers), params.max_tokens)
        ends = self._ends if n < params.max_tokens or n == 1 else []
        body = n - len(ends)
        start = self._at % (len(self._stock) - body)
        self._at += 7919 + body  # a prime: no two memories begin alike
        ids = (*self._stock[start : start + body], *ends)
        return Completion(ids, (-1.0,) * len(ids), "stop" if ends else "length")


def write_cue(prompts: Prompts) -> tuple[int, ...]:
    """What every prompt of a memory update ends with, and no other prompt."""
    a, b = prompts.write("who", "one", "two"), prompts.write("what", "three", "four")
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return tuple(a[len(a) - n :])


def ends_with(prompt: Sequence[int], cue: tuple[int, ...]) -> bool:
    """Whether a prompt asks for a memory, by :func:`write_cue`."""
    return tuple(prompt[len(prompt) - len(cue) :]) == cue
