"""Tiny random models of many families, made on the spot: two layers, a real tokenizer, nothing downloaded.

Every family exercises something that attention over shared prefixes could get wrong: grouped heads, norms on queries
and keys, sliding windows, soft caps, sinks, absolute positions, scaled logits, a head with a bias.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_tokenizer import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import load_model
from memtrain.recipe import ModelSettings
from memtrain.types import Row

torch.set_num_threads(1)  # a second thread gains nothing here, and waits by spinning where the machine is shared
CONTEXT = 4096
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # Grouped heads, rotary positions, tied embeddings.
    "llama": ("llama", {**_SHAPE, "tie_word_embeddings": True}),
    # Norms on queries and keys; a head size that is not hidden / heads.
    "qwen3": ("qwen3", {**_SHAPE, "head_dim": 16}),
    # One layer looks 20 tokens back, one all the way; biases on queries and keys.
    "qwen2-window": (
        "qwen2",
        {
            **_SHAPE,
            "use_sliding_window": True,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    # Soft caps on attention scores and on logits (low, so that they bite), a scale of its own, a window.
    "gemma2": (
        "gemma2",
        {
            **_SHAPE,
            "head_dim": 8,
            "query_pre_attn_scalar": 12,
            "sliding_window": 20,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 1.0,
            "tie_word_embeddings": True,
        },
    ),
    # Two rotary bases, a window on most layers, scaled embeddings.
    "gemma3": ("gemma3_text", {**_SHAPE, "head_dim": 8, "sliding_window": 20, "tie_word_embeddings": True}),
    # Learned absolute positions, layer norms, fused projections.
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    # Attention sinks and experts.
    "gpt-oss": (
        "gpt_oss",
        {
            **_SHAPE,
            "head_dim": 8,
            "sliding_window": 20,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    # Logits multiplied by a constant.
    "cohere": ("cohere", {**_SHAPE, "logit_scale": 0.25, "tie_word_embeddings": True}),
    # Logits divided by a constant; attention, residuals and embeddings scaled too.
    "granite": (
        "granite",
        {
            **_SHAPE,
            "logits_scaling": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
            "embedding_multiplier": 2.0,
        },
    ),
    # Output head with a bias; rotary on a part of each head; attention and MLP side by side.
    "phi": ("phi", {**_SHAPE, "num_key_value_heads": 4}),
}


@functools.cache
def tokenizer(template: bool = True) -> Any:
    """A trained byte-level tokenizer of at most 500 ids, with a chat template."""
    made = make_tokenizer() if template else make_tokenizer(None)
    made.pad_token = made.eos_token
    return made


def save_model(folder: Path, family: str = "llama", *, seed: int = 0, spread: float = 0.3, **changes: Any) -> Path:
    """Write a random model with its tokenizer as a transformers folder; ``changes`` go to its config.

    ``spread`` is the std of the weights: large enough that every part of the network matters to the logits.
    """
    kind, settings = FAMILIES[family]
    tok = tokenizer()
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    config = AutoConfig.for_model(kind, **{**settings, "vocab_size": len(tok), **ids, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            norm = "norm" in name or "ln_" in name
            parameter.normal_(0.0, 0.1 if norm else spread).add_(1.0 if norm and name.endswith("weight") else 0.0)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@functools.cache
def model_folder(family: str = "llama") -> Path:
    """A saved model of the family, one a process."""
    import atexit
    import shutil
    import tempfile

    root = Path(tempfile.mkdtemp(prefix="memtrain-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return save_model(root / family, family)


def engine(family: str | Path = "llama", *, dtype: str = "float32", lora_rank: int = 0, **options: Any) -> TorchEngine:
    """An engine on the CPU over a family's saved model or a folder."""
    folder = family if isinstance(family, Path) else model_folder(family)
    settings = ModelSettings(name=str(folder), dtype=dtype, device="cpu", lora_rank=lora_rank)  # type: ignore[arg-type]
    return TorchEngine(load_model(folder, settings), **options)


def ids(rng: random.Random, n: int) -> tuple[int, ...]:
    """Random ordinary token ids (no special ones)."""
    return tuple(rng.randrange(8, len(tokenizer())) for _ in range(n))


def row(prompt: Sequence[int], completion: Sequence[int], advantage: float = 1.0, **rest: Any) -> Row:
    """A row; log-probs default to a constant for policy rows."""
    policy = rest.get("loss", "policy") == "policy"
    rest.setdefault("logprobs", (-3.0,) * len(completion) if policy else ())
    return Row(tuple(prompt), tuple(completion), advantage=advantage, **rest)


def joint_rows(seed: int = 0) -> list[Row]:
    """A joint update in miniature: stems inside stems, single rows, empty completions, known targets."""
    rng = random.Random(seed)
    rows = []
    head = ids(rng, 18)  # what every prompt of a run begins with
    for group in range(2):
        chunk = head + ids(rng, 21)
        for member in range(3):
            prompt = chunk + ids(rng, 5 + 3 * member)
            rows.append(row(prompt, ids(rng, 7 + member), rng.uniform(-1, 1), group_id=f"e{group}"))
            second = chunk + ids(rng, 17) + ids(rng, 3)
            rows.append(row(second, ids(rng, 4), rng.uniform(-1, 1), group_id=f"e{group}"))
        probe = chunk[:25] + ids(rng, 20)
        for _ in range(3):
            rows.append(row(probe + ids(rng, 2), ids(rng, 3), rng.uniform(-1, 1), group_id=f"r{group}", kind="recall"))
        target = ids(rng, 4)
        for member in range(2):
            known = {"loss": "cross_entropy", "kind": "recall", "weight": 1.0 + member}
            rows.append(row(probe + ids(rng, 6), target, 0.0, **known))
    same = head + ids(rng, 30)
    rows += [row(same, ids(rng, 6), value) for value in (0.5, -0.5)]  # one prompt, two samples
    rows.append(row(ids(rng, 40), ids(rng, 9), 0.7))  # shares nothing
    rows.append(row(ids(rng, 1), ids(rng, 5), -0.3))  # a prompt of one token
    rows.append(row(same, (), 0.4))  # nothing was written
    rows.append(row(ids(rng, 1), (), 0.4))
    rows.append(row(same + ids(rng, 2), ids(rng, 8), 0.9, weight=0.5))
    rng.shuffle(rows)
    return rows


def run(coroutine: Any) -> Any:
    """Await from a plain test."""
    return asyncio.run(coroutine)
