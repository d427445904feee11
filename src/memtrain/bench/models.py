"""Loading what the contestants need, once a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memtrain.assets import model_path
from memtrain.bench.settings import BenchSettings, recipe_of
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import choose_device, choose_dtype, load_model


@dataclass(frozen=True)
class Place:
    """Where and with what everyone computes."""

    folder: Path
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, settings: BenchSettings) -> Place:
        """Fetches a built-in model on its first use."""
        device = choose_device(settings.device)
        folder = model_path(settings.model) or Path(settings.model)
        return cls(folder, device, choose_dtype(settings.dtype, device))


def load_engine(place: Place, settings: BenchSettings, micro_batch_tokens: int | None = None) -> TorchEngine:
    """Our engine, as a run of ``memtrain train`` would have it."""
    recipe = recipe_of(settings)
    loaded = load_model(place.folder, recipe.model, settings.seed)
    return TorchEngine(
        loaded,
        seed=settings.seed,
        micro_batch_tokens=micro_batch_tokens or settings.micro_batch_tokens,
        compile_sampler=settings.compile_sampler,
    )


def load_tokenizer(place: Place) -> Any:
    """The model's tokenizer, with a padding token."""
    from transformers import AutoTokenizer

    from memtrain.engines.torch.model import tie_pad_token

    tokenizer = AutoTokenizer.from_pretrained(place.folder)
    tie_pad_token(tokenizer)
    return tokenizer
