"""The shape of a model: what the formulas need to know of it, from its config alone. No weight is read."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.errors import UserError, first_line
from memtrain.recipe import ModelSettings


@dataclass(frozen=True)
class ModelShape:
    """A decoder in numbers."""

    name: str
    parameters: int
    """All weights, a tied output head once."""
    body: int
    """W: weights of all linear layers below the head."""
    head: int
    """V x d."""
    layers: int
    hidden: int
    """d."""
    attention_width: int
    """H x D: query heads by their size."""
    kv_width: int
    """K x D: key-value heads by their size; grouped heads make it smaller."""
    intermediate: int
    """Width of the feed-forward layers."""
    linear_sides: int
    """Inputs and outputs of all linear layers below the head, summed: a LoRA adapter has rank times as many weights."""
    window: int
    """Longest sequence it takes, in tokens."""
    qk_norm: bool
    """Whether queries and keys are normalised, which keeps more for the backward pass."""
    source: str
    """Where these numbers come from."""

    @property
    def kv_width_all(self) -> int:
        """Numbers that one token leaves in the cache: keys and values of all layers."""
        return 2 * self.layers * self.kv_width

    @classmethod
    def llama_like(
        cls,
        name: str,
        *,
        layers: int,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        intermediate: int,
        vocabulary: int,
        tied: bool,
        window: int,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        source: str = "",
    ) -> ModelShape:
        """Four projections of attention, a gated feed-forward layer, two norms a layer and one at the end."""
        width, kv = heads * head_dim, kv_heads * head_dim
        linear = 2 * hidden * width + 2 * hidden * kv + 3 * hidden * intermediate
        extras = 2 * hidden + (width + 2 * kv if qkv_bias else 0) + (2 * head_dim if qk_norm else 0)
        head = vocabulary * hidden
        sides = 2 * (hidden + width) + 2 * (hidden + kv) + 3 * (hidden + intermediate)
        return cls(
            name=name,
            parameters=layers * (linear + extras) + hidden + head * (1 if tied else 2),
            body=layers * linear,
            head=head,
            layers=layers,
            hidden=hidden,
            attention_width=width,
            kv_width=kv,
            intermediate=intermediate,
            linear_sides=layers * sides,
            window=window,
            qk_norm=qk_norm,
            source=source,
        )

    def lora_parameters(self, rank: int) -> int:
        """Weights of an adapter on every linear layer below the head."""
        return rank * self.linear_sides


_CARD = "config.json of the model card"
KNOWN: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape.llama_like(
            "Qwen/Qwen3-4B-Instruct-2507",
            layers=36,
            hidden=2560,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=9728,
            vocabulary=151_936,
            tied=True,
            window=262_144,
            qk_norm=True,
            source=_CARD,
        ),
        ModelShape.llama_like(
            "Qwen/Qwen2.5-7B-Instruct",
            layers=28,
            hidden=3584,
            heads=28,
            kv_heads=4,
            head_dim=128,
            intermediate=18_944,
            vocabulary=152_064,
            tied=False,
            window=32_768,
            qkv_bias=True,
            source=_CARD,
        ),
    )
}
"""Models of the published recipes, so that a plan needs no hub."""


def shape_of(settings: ModelSettings) -> tuple[ModelShape, Any]:
    """The model's shape, and its tokenizer where that is at hand (else None).

    Looked for in this order: a built-in name, a folder or .gguf file; what lies in the hub's cache; :data:`KNOWN`; the
    hub. Raises :class:`UserError` where there is no such model or its config cannot be read.
    """
    from memtrain.assets import model_path

    name = settings.name
    folder = model_path(name)
    if folder is not None or Path(name).expanduser().exists():
        place = folder or Path(name).expanduser()
        _check_json(place / "config.json", settings)
        return _read(str(place), settings)
    if _in_hub_cache(settings):
        with contextlib.suppress(UserError):
            return _read(name, settings)
    if name in KNOWN:
        return KNOWN[name], None
    _fetch_config(settings)
    return _read(name, settings)


def _in_hub_cache(settings: ModelSettings) -> bool:
    """Whether a model's config lies here already; looked up without torch, which takes seconds to import."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(settings.name, "config.json", revision=settings.revision)
    except HFValidationError:  # no hub id at all
        return False
    return isinstance(found, str)


def _fetch_config(settings: ModelSettings) -> None:
    """Put a hub model's config into the hub's cache. Raises :class:`UserError` where that cannot be."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(settings.name, "config.json", revision=settings.revision)
    except Exception as error:  # the hub's client raises errors of its own and of its transport
        raise UserError(_unread(settings, error)) from None


def _check_json(file: Path, settings: ModelSettings) -> None:
    """A folder's config is there and is JSON: said before transformers says it at length."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(_unread(settings, error)) from None


def _unread(settings: ModelSettings, error: Exception) -> str:
    return (
        f"the config of model {settings.name} cannot be read ({first_line(error)}); set key 'model.name' to a built-in "
        f"name, a folder with config.json, a hub id that this machine can reach, or one whose shape is known here: "
        f"{', '.join(KNOWN)}"
    )


def shape_of_model(model: Any, name: str = "", source: str = "") -> ModelShape:
    """Counted from a transformers model, which may be on the meta device."""
    import torch

    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return ModelShape(
        name=name,
        parameters=sum({id(p): p.numel() for p in model.parameters()}.values()),
        body=sum(m.weight.numel() for m in linear),
        head=head.weight.numel(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        attention_width=heads * size,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        linear_sides=sum(m.in_features + m.out_features for m in linear),
        window=int(getattr(config, "max_position_embeddings", 0) or 1_000_000),
        qk_norm=any(name.endswith("q_norm") for name, _ in model.named_modules()),
        source=source,
    )


def _read(place: str, settings: ModelSettings) -> tuple[ModelShape, Any]:
    """From what lies on this machine."""
    from transformers import AutoConfig, AutoTokenizer

    options: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    try:
        shape = _shape_of_config(AutoConfig.from_pretrained(place, local_files_only=True, **options), settings)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(_unread(settings, error)) from None
    try:
        return shape, AutoTokenizer.from_pretrained(place, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError):
        return shape, None


def _shape_of_config(config: Any, settings: ModelSettings) -> ModelShape:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
    return shape_of_model(model, settings.name, "its config.json")
