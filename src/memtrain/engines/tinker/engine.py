"""The Tinker engine: :class:`memtrain.engines.base.Engine` on a server that holds the model."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from memtrain.engines.base import LossConfig, OptimiserConfig, ProgressCallback, Weights
from memtrain.engines.seeds import Seeds
from memtrain.engines.tinker.adapters import fetch
from memtrain.engines.tinker.client import ServerError
from memtrain.engines.tinker.reduction import measure
from memtrain.engines.tinker.requests import Gatherer, Turns, completion_of
from memtrain.engines.tinker.served import ServedModel
from memtrain.engines.tinker.update import ScoreRequest, forward, joint_step, refuse
from memtrain.errors import UserError
from memtrain.rl.loss import Normalisers
from memtrain.settings.tinker import TinkerSettings
from memtrain.types import Completion, Row, SamplingParams

T = TypeVar("T")
SampleRequest = tuple[tuple[int, ...], SamplingParams]
TRIES = 4
"""How often something is done again that a restart of the server broke off."""
LARGEST_SEED = 2**31 - 2**16
"""Servers take 32-bit seeds and add the sample's number."""
FILE = "tinker.json"


class _OfLoop:
    """What belongs to one event loop."""

    def __init__(self, engine: TinkerEngine):
        self.loop = asyncio.get_running_loop()
        self.turns, self.loading = Turns(), asyncio.Lock()
        self.room = asyncio.Semaphore(engine.settings.max_requests)
        self.samples: Gatherer[SampleRequest, Completion] = Gatherer(engine._run_samples)
        self.scores: Gatherer[ScoreRequest, list[float]] = Gatherer(engine._run_scores)


class TinkerEngine:
    """Samples, scores and trains a LoRA adapter on a server; see :class:`ServedModel` for what a restart does."""

    def __init__(
        self,
        model: ServedModel,
        tokenizer: Any,
        settings: TinkerSettings,
        *,
        folder: str,
        context: int,
        end_ids: Sequence[int],
        seed: int = 0,
    ):
        """``folder`` is the base model as transformers knows it, ``context`` the longest sequence in tokens,
        ``end_ids`` end a completion."""
        self.model, self.settings, self.folder = model, settings, folder
        self._tokenizer, self._context = tokenizer, context
        self.end_ids = tuple(end_ids)
        self.on_progress: ProgressCallback | None = None
        self.tokens_sampled = 0
        self._seeds = Seeds(str(seed))
        self._reduction: str = settings.reduction
        self._mine: _OfLoop | None = None
        self._asked = self._answered = 0

    # ---- protocol --------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return self._tokenizer

    @property
    def context_tokens(self) -> int:
        """Longest prompt plus completion."""
        return self._context

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """See :meth:`memtrain.engines.base.Engine.sample`. Log-probs are the server's: at temperature 1 with SkyRL."""
        self._check_length(len(prompt_ids) + params.max_tokens)
        self._asked += n
        try:
            asked = (tuple(prompt_ids), params)
            return list(await asyncio.gather(*(self._here().samples.ask(asked) for _ in range(n))))
        finally:
            self._asked -= n
            self._answered = 0 if self._asked == 0 else self._answered

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], weights: Weights = "policy"
    ) -> list[float]:
        """See :meth:`memtrain.engines.base.Engine.score`."""
        self._check_length(len(prompt_ids) + len(completion_ids))
        if not completion_ids:
            return []
        return await self._here().scores.ask((tuple(prompt_ids), tuple(completion_ids), weights))

    async def update(self, rows: Sequence[Row], loss: LossConfig, optimiser: OptimiserConfig) -> dict[str, float]:
        """See :meth:`memtrain.engines.base.Engine.update`; the objective is that of ``losses.py``.

        Raises :class:`UserError` for what a server cannot do. What a restart broke off is done again from the state
        before; the state after is saved before this returns.
        """
        rows = [row for row in rows if row.completion_ids or row.loss == "policy"]
        z, count = Normalisers.of(rows, loss), float(len(rows))
        rows = [row for row in rows if row.completion_ids]
        if not rows:
            return {"rows": 0.0, "loss": 0.0, "grad_norm": 0.0}
        began = time.perf_counter()
        async with self._here().turns.alone():
            await self._again(lambda: self._prepare(loss, optimiser))
            try:
                step = (self.model, rows, loss, optimiser, z, self.settings, self._reduction)
                metrics = await self._again(lambda: joint_step(*step))
            except BaseException:
                self.model.doubt()  # gradients may have added up, or been applied
                raise
        self._report("update", len(rows), len(rows))
        return metrics | {"rows": count, "lr": optimiser.lr, "update_seconds": time.perf_counter() - began}

    async def reseed(self, seed: str) -> None:
        """See :meth:`memtrain.engines.base.Engine.reseed`. Draws repeat where the server's seeds do."""
        self._seeds = Seeds(seed)

    async def anchor(self) -> None:
        """See :meth:`memtrain.engines.base.Engine.anchor`."""
        async with self._here().turns.alone():
            await self._again(self.model.anchor)

    async def reset_optimiser(self) -> None:
        """See :meth:`memtrain.engines.base.Engine.reset_optimiser`."""
        async with self._here().turns.alone():
            if self.model.state is not None:  # else nothing was trained
                await self._again(self.model.reset_optimiser)

    async def save(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.save`: the weights stay on the server, their path is written."""
        async with self._here().turns.alone():
            state = await self._again(self.model.save)
        reference = self.model.reference_state
        self.model.kept |= {path for path in (state, reference) if path}
        adapter = self.model.adapter
        content = {"base_model": adapter.base_model, "rank": adapter.rank, "state": state, "reference": reference}
        text = json.dumps(content | {"seeds": self._seeds.state()}, indent=2)
        (folder / FILE).write_text(text, encoding="utf-8")

    async def load(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.load`."""
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            here = (self.model.adapter.base_model, self.model.adapter.rank)
            there = (str(content["base_model"]), int(content["rank"]))
            state, reference, seeds = str(content["state"]), content["reference"], Seeds.restore(content["seeds"])
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"checkpoint {folder} has no {FILE} of the Tinker engine ({type(error).__name__}: {error}); resume "
                "with the recipe that wrote it, or start a new run folder"
            ) from None
        if here != there:
            raise UserError(
                f"checkpoint {folder} holds an adapter of rank {there[1]} of {there[0]}, not rank {here[1]} of "
                f"{here[0]}; resume with the recipe that wrote it (tinker.base_model, model.lora_rank)"
            )
        async with self._here().turns.alone():
            await self._again(lambda: self.model.restore(state, reference))
        self._seeds = seeds

    async def export(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.export`: an adapter folder for peft, beside the tokenizer."""
        async with self._here().turns.alone():
            path, url = await self._again(self.model.export)
            await asyncio.to_thread(fetch, url, folder, self.folder)
            await self.model.remove(path)
        self.tokenizer.save_pretrained(folder)

    def close(self) -> None:
        """Give the model's places on the server back. Saved states stay."""
        atexit.unregister(self.close)
        with contextlib.suppress(UserError, ServerError, RuntimeError):
            asyncio.run(self.model.close())

    # ---- between ---------------------------------------------------------------------------------------------------

    async def prepare(self, loss: LossConfig, optimiser: OptimiserConfig) -> None:
        """Find out, before any work is done, whether the server can do updates of this kind."""
        async with self._here().turns.alone():
            await self._again(lambda: self._prepare(loss, optimiser))

    async def _prepare(self, loss: LossConfig, optimiser: OptimiserConfig) -> None:
        """What has to stand before an update: the server's reduction, a state to go back to, a reference."""
        if self._reduction == "auto":
            self._reduction = await measure(self.model, self.settings.rows_multiple)
        refuse(loss, optimiser, self._reduction, self.model.connection.url)
        await self.model.save()
        if loss.kl_coef > 0 and self.model.reference_state is None:
            await self.model.anchor()  # the start model is the policy before its first update

    async def _again(self, do: Callable[[], Awaitable[T]]) -> T:
        """Do something, and once more after a restart of the server broke it off."""
        for left in range(TRIES - 1, -1, -1):
            seen = self.model.generation
            try:
                return await do()
            except ServerError as error:
                if not error.lost or not left:
                    url = self.model.connection.url
                    raise UserError(
                        f"the Tinker server at {url} did not do what was asked ({error.message}); look at its log"
                    ) from None
                async with self._here().loading:
                    await self.model.reload(seen)
        raise AssertionError("unreachable")

    def _here(self) -> _OfLoop:
        if self._mine is None or self._mine.loop is not asyncio.get_running_loop():
            self._mine = _OfLoop(self)
        return self._mine

    def _check_length(self, length: int) -> None:
        if length > self.context_tokens:
            raise UserError(
                f"a prompt and its completion take {length} tokens but the model's window is {self.context_tokens}; "
                "lower memory.chunk_tokens or memory.memory_tokens, or raise tinker.context_tokens"
            )

    def _report(self, what: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(what, done, total)

    # ---- batches ---------------------------------------------------------------------------------------------------

    async def _run_scores(self, requests: list[ScoreRequest]) -> list[list[float]]:
        answers: dict[ScoreRequest, list[float]] = {}

        async def run() -> None:
            for weights in ("policy", "reference"):
                wanted = list(dict.fromkeys(r for r in requests if r[2] == weights and r not in answers))
                if wanted:
                    async with self._here().loading:
                        await self.model.trainer(wanted[0][2])
                    answers.update(
                        zip(wanted, await forward(self.model, wanted, self.settings.rows_multiple), strict=True)
                    )
                    self._report("scoring", len(wanted), len(wanted))

        async with self._here().turns.together():
            await self._again(run)
        return [answers[request] for request in requests]

    async def _run_samples(self, requests: list[SampleRequest]) -> list[Completion]:
        places: dict[SampleRequest, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request, []).append(place)
        seeds = {request: self._seeds.draw(request[0]) % LARGEST_SEED for request in places}
        found: list[Completion | None] = [None] * len(requests)

        async def one(request: SampleRequest, where: list[int]) -> None:
            completions = await self._again(lambda: self._sample(request, len(where), seeds[request]))
            for place, completion in zip(where, completions, strict=True):
                found[place] = completion

        async with self._here().turns.together():
            await asyncio.gather(*(one(request, where) for request, where in places.items()))
        return [completion for completion in found if completion is not None]

    async def _sample(self, request: SampleRequest, n: int, seed: int) -> list[Completion]:
        from tinker import types

        prompt, params = request
        async with self._here().loading:
            sampler = await self.model.sampler()
        asked = types.SamplingParams(
            max_tokens=params.max_tokens,
            seed=seed,
            temperature=params.temperature,
            top_p=params.top_p,
            stop=None if params.ignore_eos else list(self.end_ids),
        )
        async with self._here().room:
            answer = await self.model.connection.ask(
                lambda: sampler.sample_async(types.ModelInput.from_ints(list(prompt)), n, asked)
            )
        completions = [completion_of(sequence, params, self.tokenizer) for sequence in answer.sequences]
        self.tokens_sampled += sum(len(completion.token_ids) for completion in completions)
        self._answered += n
        self._report("sampling", self._answered, max(self._asked, self._answered))
        return completions
