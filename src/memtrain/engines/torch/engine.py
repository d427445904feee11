"""The in-process engine: :class:`memtrain.engines.base.Engine` on one PyTorch device."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from memtrain.engines.base import LossConfig, OptimiserConfig, ProgressCallback, Weights
from memtrain.engines.prefix_tree import pack_by_budget
from memtrain.engines.seeds import Seeds
from memtrain.engines.torch.attention import checkpoint_contexts
from memtrain.engines.torch.batching import Batch, Batcher, together
from memtrain.engines.torch.cpu_memory import keep_freed_memory
from memtrain.engines.torch.forward import CompletionBatch, completion_logprobs, run_tokens
from memtrain.engines.torch.model import LoadedModel, end_tokens
from memtrain.engines.torch.optimiser import MasterAdamW
from memtrain.engines.torch.rollout_model import RolloutModel
from memtrain.engines.torch.sampling import MIN_SHARED, Request, sample_batch
from memtrain.engines.workers import ALONE, Workers
from memtrain.errors import UserError
from memtrain.rl.loss import Normalisers, RowCounts, TokenBatch, add_stats, joint_loss, update_metrics
from memtrain.types import Completion, Row, SamplingParams

ScoreRequest = tuple[tuple[int, ...], tuple[int, ...], Weights]


class TorchEngine:
    """Samples, scores and trains one model; batches whatever waits, shares prefixes by itself."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        seed: int = 0,
        micro_batch_tokens: int = 16_384,
        max_sequences: int | None = None,
        gradient_checkpointing: bool = False,
        share_prefixes: bool = True,
        overlap: bool | ThreadPoolExecutor | None = None,
        compile_sampler: bool = False,
        workers: Workers = ALONE,
        seed_by_prompt: bool = False,
    ):
        """``max_sequences`` decode together (default 64 on a CPU, 256 on a GPU); ``share_prefixes`` = False runs
        every row by itself, for comparison; ``overlap`` samples in a thread of its own while episodes go on
        (default: on a GPU), or in the given one, for several engines on one device, and lets who comes later join at
        once; ``compile_sampler`` samples with layers that went through torch.compile.
        ``workers`` share every update; ``seed_by_prompt`` gives each request random numbers of its own, by its prompt
        and how often that was asked, so that draws do not depend on who else decodes."""
        self.loaded = loaded
        self.micro_batch_tokens = micro_batch_tokens
        self.max_sequences = max_sequences or (64 if loaded.device.type == "cpu" else 256)
        self.on_progress: ProgressCallback | None = None
        self.tokens_sampled = 0
        self._min_shared = MIN_SHARED if share_prefixes else 1 << 30
        self.workers = workers
        self._generator = torch.Generator().manual_seed(seed)
        self._seeds = Seeds(str(seed)) if seed_by_prompt else None
        self._optimiser: MasterAdamW | None = None
        self._reference: dict[str, torch.Tensor] = {}
        self.compile_sampler = compile_sampler
        self._rollout: RolloutModel | None = None
        if overlap is None:
            overlap = loaded.device.type == "cuda"  # on a CPU a second thread would only take cores from the first
        self._serving = isinstance(overlap, ThreadPoolExecutor)
        if loaded.device.type == "cpu" and not self._serving:  # a server's caches come in many sizes: let them go again
            keep_freed_memory()
        own = ThreadPoolExecutor(1, "memtrain-device") if overlap is True else None
        self._worker = overlap if isinstance(overlap, ThreadPoolExecutor) else own
        self._sample_queue: Batcher[Request, Completion] = Batcher(self._run_samples, self._worker)
        self._score_queue: Batcher[ScoreRequest, list[float]] = Batcher(together(self._run_scores), self._worker)
        if gradient_checkpointing:
            base = loaded.base  # transformers renames the method; both take the same settings
            enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
            enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
            loaded.model.train()  # transformers checkpoints in train mode only
            for module in loaded.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0

    # ---- protocol -------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return self.loaded.tokenizer

    @property
    def context_tokens(self) -> int:
        """Longest sequence the model takes."""
        return self.loaded.context_tokens

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """See :meth:`memtrain.engines.base.Engine.sample`."""
        self._check_length(len(prompt_ids) + params.max_tokens)
        seeds = [self._seeds.draw(prompt_ids) if self._seeds else None for _ in range(n)]
        requests = [Request(tuple(prompt_ids), params, seed) for seed in seeds]
        return list(await asyncio.gather(*(self._sample_queue.ask(request) for request in requests)))

    async def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams, on_token: Callable[[int], None]
    ) -> Completion:
        """See :meth:`memtrain.engines.base.StreamingEngine.stream`."""
        self._check_length(len(prompt_ids) + params.max_tokens)
        loop = asyncio.get_running_loop()

        def hand_over(token: int) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(on_token, token)

        seed = self._seeds.draw(prompt_ids) if self._seeds else None
        return await self._sample_queue.ask(Request(tuple(prompt_ids), params, seed, hand_over))

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], weights: Weights = "policy"
    ) -> list[float]:
        """See :meth:`memtrain.engines.base.Engine.score`."""
        self._check_length(len(prompt_ids) + len(completion_ids))
        return await self._score_queue.ask((tuple(prompt_ids), tuple(completion_ids), weights))

    async def update(self, rows: Sequence[Row], loss: LossConfig, optimiser: OptimiserConfig) -> dict[str, float]:
        """See :meth:`memtrain.engines.base.Engine.update`. Empty ``rows`` change nothing. Workers share one update:
        each brings its rows, all get the same weights and the same metrics."""
        await self._idle()
        rows = [row for row in rows if row.completion_ids or row.loss == "policy"]
        counts = sum(self.workers.gather(RowCounts.of(rows)), RowCounts())
        z = Normalisers.from_counts(counts, loss)
        began, sums = time.perf_counter(), {"policy_tokens": 0.0, "known_tokens": 0.0}
        if not counts.policy_tokens + counts.known_tokens:
            return {"rows": 0.0, "loss": 0.0, "grad_norm": 0.0}
        if loss.kl_coef > 0 and not self._reference:
            await self.anchor()  # the start model is the policy before its first update
        self._drop_rollout()  # a copy of the weights that is about to be out of date
        adamw = self._adamw()
        if not any(row.completion_ids for row in rows):
            rows = []  # they count, but this worker has nothing to run
        sequences = [run_tokens(row.prompt_ids, row.completion_ids) for row in rows]
        done = 0
        adamw.clear_gradients()  # an interrupted update may have left some
        for numbers in pack_by_budget(sequences, self.micro_batch_tokens, self._min_shared):
            await asyncio.sleep(0)  # lets Ctrl-C in between micro-batches: nothing has changed yet
            part = [rows[number] for number in numbers]
            value, packed, stats = self._backward(part, loss, z)
            separate = sum(len(row.prompt_ids) + len(row.completion_ids) for row in part)
            add_stats(sums, stats | {"loss": value, "rows": len(part), "packed": packed, "separate": separate})
            done += len(part)
            self._report("update", done, len(rows))
        norm = adamw.step(optimiser)
        self._drop_rollout()  # also what was made meanwhile
        whole: dict[str, float] = {}
        for theirs in self.workers.gather(sums):
            add_stats(whole, theirs)
        return update_metrics(whole) | {
            "grad_norm": norm,
            "lr": optimiser.lr,
            "update_seconds": time.perf_counter() - began,
        }

    async def reseed(self, seed: str) -> None:
        """See :meth:`memtrain.engines.base.Engine.reseed`."""
        self._generator.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1)
        self._seeds = Seeds(seed) if self._seeds else None

    async def anchor(self) -> None:
        """The policy as it is now becomes the reference (the start model of the KL term)."""
        await self._idle()
        self._reference = {name: p.detach().clone() for name, p in self._trainable()}

    async def reset_optimiser(self) -> None:
        """See :meth:`memtrain.engines.base.Engine.reset_optimiser`."""
        self._adamw().reset()

    async def save(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.save`."""
        await self._idle()
        save_file(self._adamw().state_tensors(), folder / "optimiser.safetensors")
        if self._reference:
            save_file({k: v.contiguous() for k, v in self._reference.items()}, folder / "reference.safetensors")
        state = {"generator": self._generator.get_state().numpy().tobytes().hex(), "reference": bool(self._reference)}
        (folder / "engine.json").write_text(json.dumps(state))

    async def load(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.load`."""
        await self._idle()
        self._drop_rollout()
        try:
            state = json.loads((folder / "engine.json").read_text())
            self._adamw().load_state_tensors(load_file(folder / "optimiser.safetensors"))
            if state["reference"]:
                device = self.loaded.device
                self._reference = {k: v.to(device) for k, v in load_file(folder / "reference.safetensors").items()}
            self._generator.set_state(torch.tensor(list(bytes.fromhex(state["generator"])), dtype=torch.uint8))
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"checkpoint {folder} does not fit this model ({type(error).__name__}: {error}); resume with the "
                "recipe that wrote it, or start a new run folder"
            ) from None

    async def export(self, folder: Path) -> None:
        """See :meth:`memtrain.engines.base.Engine.export`."""
        self.loaded.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    # ---- below the protocol ----------------------------------------------------------------------------------------

    async def _idle(self) -> None:
        """Wait until the worker thread, if any, has left the model alone."""
        if self._worker is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, lambda: None)

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.loaded.model.named_parameters() if p.requires_grad]

    def _adamw(self) -> MasterAdamW:
        if self._optimiser is None:  # evaluation and reading never pay for master weights
            self._optimiser = MasterAdamW(self._trainable(), self.workers)
        return self._optimiser

    def _check_length(self, length: int) -> None:
        if length > self.context_tokens:
            raise UserError(
                f"a prompt and its completion take {length} tokens but the model's window is {self.context_tokens}; "
                "lower memory.chunk_tokens or memory.memory_tokens"
            )

    @property
    def sampling_model(self) -> LoadedModel:
        """The policy as it samples now: LoRA merged, weights laid out, layers compiled where that is asked for."""
        if self._rollout is None:
            self._rollout = RolloutModel(self.loaded, self.compile_sampler)
        return self._rollout.ready()

    def _drop_rollout(self) -> None:
        if self._rollout is not None:
            self._rollout.drop()

    def _report(self, what: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(what, done, total)

    def _run_samples(self, batch: Batch[Request, Completion]) -> None:
        done = 0

        def deliver(number: int, completion: Completion) -> None:
            nonlocal done
            done += 1
            self.tokens_sampled += len(completion.token_ids)
            self._report("sampling", done, len(batch.requests))
            batch.deliver(number, completion)

        sample_batch(
            self.sampling_model,
            list(batch.requests),
            frozenset(end_tokens(self.loaded)),
            self._generator,
            deliver,
            max_sequences=self.max_sequences,
            min_shared=self._min_shared,
            arrivals=batch.arrivals,
            abandoned=lambda: batch.abandoned,
            gone=batch.gone,
            grow=self._serving,
        )

    @torch.no_grad()
    def _run_scores(self, requests: list[ScoreRequest]) -> list[list[float]]:
        answers: dict[ScoreRequest, list[float]] = {}
        for weights in ("policy", "reference"):
            wanted = list(dict.fromkeys(request for request in requests if request[2] == weights))
            if not wanted:
                continue
            done = 0
            with self._weights(weights):
                for numbers in pack_by_budget(
                    [run_tokens(p, c) for p, c, _ in wanted], self.micro_batch_tokens, self._min_shared
                ):
                    part = [wanted[number] for number in numbers]
                    packed = CompletionBatch.of([p for p, _, _ in part], [c for _, c, _ in part], self._min_shared)
                    flat = self._logprobs(packed).tolist()
                    for request in part:
                        size = len(request[1])
                        answers[request], flat = flat[:size], flat[size:]
                    done += len(part)
                    self._report("scoring", done, len(wanted))
        return [answers[request] for request in requests]

    def _logprobs(self, packed: CompletionBatch, temperature: float = 1.0) -> torch.Tensor:
        return completion_logprobs(self.loaded, packed, temperature)

    def _backward(self, rows: list[Row], config: LossConfig, z: Normalisers) -> tuple[float, int, dict[str, float]]:
        """Loss, packed tokens and statistics of a micro-batch; its gradient is added up."""
        packed = CompletionBatch.of(
            [row.prompt_ids for row in rows], [row.completion_ids for row in rows], self._min_shared
        )
        reference = None
        if config.kl_coef > 0 and any(row.loss == "policy" for row in rows):
            with torch.no_grad(), self._weights("reference"):
                reference = self._logprobs(packed, config.temperature)
        logprobs = self._logprobs(packed, config.temperature)
        batch = TokenBatch.of(rows, self.loaded.device)
        loss, stats = joint_loss(logprobs, batch, reference, config, z)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach()), packed.tree.n_tokens, stats

    @contextlib.contextmanager
    def _weights(self, which: Weights) -> Iterator[None]:
        """Run as the reference: its tensors take the parameters' places, nothing is copied."""
        if which == "policy" or not self._reference:
            # Without an anchor the policy has not been trained: it is its own reference.
            yield
            return
        trained = {name: p.data for name, p in self._trainable()}
        try:
            for name, parameter in self._trainable():
                parameter.data = self._reference[name]
            yield
        finally:
            for name, parameter in self._trainable():
                parameter.data = trained[name]
