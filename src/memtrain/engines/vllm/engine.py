"""vLLM samples, the in-process PyTorch engine learns: one :class:`memtrain.engines.base.Engine` of the two."""

from __future__ import annotations

import asyncio
import atexit
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from memtrain.engines.base import LossConfig, OptimiserConfig, ProgressCallback, Weights
from memtrain.engines.seeds import Seeds
from memtrain.engines.torch.model import end_tokens
from memtrain.errors import UserError
from memtrain.settings import SamplerSettings
from memtrain.types import Completion, Row, SamplingParams

LARGEST_GAP = 0.5
"""Nats: a sampler whose log-probs are further off than this on average holds another model. Rounding to bfloat16
gives 0.05, another model several."""


class Sampler(Protocol):
    """A way to reach vLLM."""

    full_weights: bool
    """Whether it takes all weights, or adapters only."""
    context_tokens: int
    """Longest prompt plus completion."""

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams, seed: int) -> Completion:
        """One completion."""
        ...

    async def take(self, learner: Any) -> None:
        """Sample with the learner's weights, as they are now, from here on."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class VLLMEngine:
    """Samples with vLLM; everything else is the learner's.

    New weights go to vLLM before the first request after an update, so a row of supervised updates costs nothing.
    """

    def __init__(self, learner: Any, sampler: Sampler, seed: int = 0):
        """``learner`` is a :class:`memtrain.engines.torch.engine.TorchEngine`."""
        self.learner, self.sampler = learner, sampler
        self.tokens_sampled = 0
        self._seeds = Seeds(str(seed))
        self._stale = True
        self._checked = False
        self._handing_over: asyncio.Task[None] | None = None
        self._asked = self._answered = 0

    # ---- sampling --------------------------------------------------------------------------------------------------

    @property
    def context_tokens(self) -> int:
        """Longest sequence that both take."""
        return min(int(self.learner.context_tokens), self.sampler.context_tokens)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """See :meth:`memtrain.engines.base.Engine.sample`."""
        length = len(prompt_ids) + params.max_tokens
        if length > self.context_tokens:
            raise UserError(
                f"a prompt and its completion take {length} tokens but the sampler's window is {self.context_tokens}; "
                "lower memory.chunk_tokens or memory.memory_tokens, or raise sampler.context_tokens"
            )
        # Drawn before anything is awaited: the order of the calls decides among equal prompts.
        seeds = [self._seeds.draw(prompt_ids) for _ in range(n)]
        await self._in_step()
        self._asked += n
        try:
            return list(await asyncio.gather(*(self._one(prompt_ids, params, seed) for seed in seeds)))
        finally:
            self._asked -= n
            self._answered = 0 if self._asked == 0 else self._answered

    async def _one(self, prompt_ids: Sequence[int], params: SamplingParams, seed: int) -> Completion:
        completion = await self.sampler.generate(prompt_ids, params, seed)
        self.tokens_sampled += len(completion.token_ids)
        self._answered += 1
        if self.on_progress is not None:
            self.on_progress("sampling", self._answered, max(self._asked, self._answered))
        return completion

    async def _in_step(self) -> None:
        """Hand the learner's weights over where they changed; whoever asks meanwhile waits."""
        if self._stale:
            if self._handing_over is None or self._handing_over.done():
                self._handing_over = asyncio.get_running_loop().create_task(self._hand_over())
            await asyncio.shield(self._handing_over)

    async def _hand_over(self) -> None:
        await self.sampler.take(self.learner)
        if not self._checked:
            await self._check_same_model()
            self._checked = True
        self._stale = False

    async def _check_same_model(self) -> None:
        """Whether vLLM's log-probs are those of the learner, on a few tokens that vLLM draws."""
        vocabulary = len(self.tokenizer)
        rng = random.Random(0)
        prompt = [rng.randrange(vocabulary) for _ in range(16)]
        drawn = await self.sampler.generate(prompt, SamplingParams(16, ignore_eos=True), seed=0)
        own = await self.learner.score(prompt, drawn.token_ids)
        gap = sum(abs(a - b) for a, b in zip(own, drawn.logprobs, strict=True)) / len(own)
        if not gap <= LARGEST_GAP:
            raise UserError(
                f"vLLM samples from another model than the one that trains (log-probs differ by {gap:.1f} nats a "
                "token); let the server serve what key 'model.name' names, or set sampler.kind = \"torch\""
            )

    async def reseed(self, seed: str) -> None:
        """See :meth:`memtrain.engines.base.Engine.reseed`."""
        self._seeds = Seeds(seed)
        await self.learner.reseed(seed)

    # ---- what changes weights --------------------------------------------------------------------------------------

    async def update(self, rows: Sequence[Row], loss: LossConfig, optimiser: OptimiserConfig) -> dict[str, float]:
        """See :meth:`memtrain.engines.base.Engine.update`."""
        self.check_trainable()
        try:
            return dict(await self.learner.update(rows, loss, optimiser))
        finally:
            self._stale = True

    def check_trainable(self) -> None:
        """Raises :class:`UserError` where the sampler could not follow an update."""
        if not self.sampler.full_weights and not self.learner.loaded.lora:
            raise UserError(
                "key 'model.lora_rank' is 0 but a vLLM server takes no full weights; set model.lora_rank (16, for "
                'example) to train an adapter, or sampler.kind = "vllm" for vLLM in this process'
            )

    async def load(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.load`."""
        await self.learner.load(folder)
        self._stale = True
        file = folder / "sampler.json"
        if file.exists():
            self._seeds = Seeds.restore(json.loads(file.read_text(encoding="utf-8")))

    async def save(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.save`."""
        await self.learner.save(folder)
        (folder / "sampler.json").write_text(json.dumps(self._seeds.state()), encoding="utf-8")

    # ---- the learner's ---------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return self.learner.tokenizer

    @property
    def loaded(self) -> Any:
        """The model that trains."""
        return self.learner.loaded

    @property
    def on_progress(self) -> ProgressCallback | None:
        """Told how far sampling, scoring and updates are."""
        callback: ProgressCallback | None = self.learner.on_progress
        return callback

    @on_progress.setter
    def on_progress(self, callback: ProgressCallback | None) -> None:
        self.learner.on_progress = callback

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], weights: Weights = "policy"
    ) -> list[float]:
        """See :meth:`memtrain.engines.base.Engine.score`."""
        return list(await self.learner.score(prompt_ids, completion_ids, weights))

    async def anchor(self) -> None:
        """See :meth:`memtrain.engines.base.Engine.anchor`."""
        await self.learner.anchor()

    async def reset_optimiser(self) -> None:
        """See :meth:`memtrain.engines.base.Engine.reset_optimiser`."""
        await self.learner.reset_optimiser()

    async def export(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.export`."""
        await self.learner.export(folder)

    def close(self) -> None:
        """Give back what the sampler holds."""
        self.sampler.close()


def with_vllm(learner: Any, settings: SamplerSettings, seed: int = 0) -> VLLMEngine:
    """The learner with the sampler that the settings ask for. Raises :class:`UserError` where it is not to be had."""
    end_ids = end_tokens(learner.loaded)
    sampler: Sampler
    if settings.kind == "vllm":
        from memtrain.engines.vllm.inprocess import InProcessSampler

        sampler = InProcessSampler(settings, learner, end_ids)
    else:
        from memtrain.engines.vllm.server import ServerSampler

        sampler = ServerSampler(settings, end_ids)
    atexit.register(sampler.close)
    return VLLMEngine(learner, sampler, seed)
