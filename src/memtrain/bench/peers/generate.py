"""Rollouts by transformers: ``generate`` on a left-padded batch, and ``generate_batch`` (continuous batching).

Both draw from the whole softmax at temperature 1 and go on past end tokens. Neither is asked for log-probs, which our
engine reports with every token: what they would cost is left out in the peers' favour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

NO_END = -1
"""An end token that is never sampled."""
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class GenerateSettings:
    """How ``generate`` is called."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    cache: Literal["dynamic", "static"] = "static"
    batch: int = 16
    """Sequences in one call."""
    compile: bool = False
    """Compile the decoding step with TorchInductor (static cache only)."""


@dataclass(frozen=True)
class ContinuousSettings:
    """Limits of ``generate_batch``, which it cannot take from a GPU's memory here."""

    attention: Literal["sdpa", "paged|eager"] = "sdpa"
    requests: int = 4
    """Most requests in one forward pass. Without a flash kernel every query meets the keys of all of them."""
    batch_tokens: int = 512
    """Most query tokens in one forward pass."""
    page: int = 128
    """Tokens of a cache page; whole pages of a common prefix are shared."""
    scheduler: Literal["fifo", "prefill_first"] = "fifo"
    sharing: bool = True
    """Share the pages of common prefixes."""


def best_generate(device: torch.device) -> GenerateSettings:
    """The fastest of what ``memtrain bench tune`` tried on 2 CPU cores; on a GPU larger batches pay."""
    return GenerateSettings() if device.type == "cpu" else GenerateSettings(batch=64)


def best_continuous(device: torch.device) -> ContinuousSettings:
    """The fastest of what ``memtrain bench tune`` tried on 2 CPU cores; on a GPU as many requests as come."""
    if device.type == "cpu":
        return ContinuousSettings()
    return ContinuousSettings(requests=256, batch_tokens=8192)


def load_peer(folder: str | Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The stock transformers model, a copy of its own: nothing of ours is plugged in."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()


def left_padded(prompts: Prompts, fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (rows, longest)."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[fill] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Prompts, new_tokens: int, settings: GenerateSettings | None = None
) -> list[tuple[int, ...]]:
    """``new_tokens`` sampled tokens for every prompt."""
    from transformers.generation import CompileConfig

    settings = settings or GenerateSettings()
    config = _sampling(
        tokenizer,
        new_tokens,
        cache_implementation="static" if settings.cache == "static" else None,
        disable_compile=not settings.compile,
        compile_config=CompileConfig(fullgraph=False) if settings.compile else None,
    )
    if settings.compile:
        config.compile_config._compile_all_devices = True
    found: list[tuple[int, ...]] = []
    with attention(model, settings.attention):
        for start in range(0, len(prompts), settings.batch):
            ids, mask = left_padded(prompts[start : start + settings.batch], tokenizer.pad_token_id, model.device)
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            found += [tuple(row) for row in output[:, ids.shape[1] :].tolist()]
    return checked(found, len(prompts), new_tokens)


def generate_batch(
    model: Any, tokenizer: Any, prompts: Prompts, new_tokens: int, settings: ContinuousSettings | None = None
) -> list[tuple[int, ...]]:
    """The same by continuous batching over a paged cache."""
    from transformers.generation import ContinuousBatchingConfig

    settings = settings or ContinuousSettings()
    config = _sampling(tokenizer, new_tokens)
    longest = max(len(prompt) for prompt in prompts) + new_tokens
    pages = -(-longest // settings.page) + 1
    limits = ContinuousBatchingConfig(
        page_size=settings.page,
        num_blocks=pages * settings.requests * 5 // 4,  # the fifo scheduler keeps 15% free
        max_batch_tokens=settings.batch_tokens,
        max_requests_per_batch=settings.requests,
        allow_block_sharing=settings.sharing,
        scheduler_type=settings.scheduler,
    )
    inputs = [list(prompt) for prompt in prompts]
    with attention(model, settings.attention):
        outputs = model.generate_batch(inputs, generation_config=config, continuous_batching_config=limits)
    return checked([tuple(output.generated_tokens) for output in outputs.values()], len(prompts), new_tokens)


def _sampling(tokenizer: Any, new_tokens: int, **more: Any) -> Any:
    """The whole softmax at temperature 1, exactly ``new_tokens`` tokens."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=NO_END,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Run with an attention implementation, and put the old one back."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def checked(found: list[tuple[int, ...]], sequences: int, new_tokens: int) -> list[tuple[int, ...]]:
    """A peer that writes less than it is asked for would look faster than it is."""
    lengths = [len(row) for row in found]
    if lengths != [new_tokens] * sequences:
        raise RuntimeError(f"asked for {sequences} x {new_tokens} new tokens, got lengths {sorted(set(lengths))}")
    return found
