"""Weights of a run as transformers or peft loads them: a checkpoint's masters put into the base, adapters merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memtrain.assets import model_path
from memtrain.errors import UserError, first_line
from memtrain.publish.source import Source
from memtrain.settings import ModelSettings

Format = Literal["merged", "adapter"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Written:
    """What was written."""

    parameters: int
    """Weights in the files (an adapter: its own)."""
    dtype: str
    """Their type."""
    lora_rank: int
    """Of an adapter; 0 for a whole model."""


def write_merged(source: Source, folder: Path, dtype: Dtype) -> Written:
    """Write the whole model, tokenizer, chat template and generation settings into an existing empty folder.

    ``auto`` keeps the type that the weights have now (a checkpoint: that its recipe or its base names). Raises
    :class:`UserError` where the source cannot be loaded or its weights do not fit the type.
    """
    import torch

    chosen = _stored_dtype(source) if dtype == "auto" else dtype
    loaded = _load(source, "float32" if chosen == "float16" else chosen)
    model = loaded.model.merge_and_unload() if loaded.lora else loaded.model
    model.to(getattr(torch, chosen))
    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"the weights {name} are not finite in {chosen}; choose --dtype bfloat16 or float32")
    from memtrain.engines.torch.model import end_tokens

    ends = end_tokens(loaded)
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    _clean(folder)
    return Written(sum(tensor.numel() for tensor in model.parameters()), chosen, 0)


def write_adapter(source: Source, folder: Path, dtype: Dtype, base: str, revision: str | None) -> Written:
    """Write the LoRA adapter for peft, with the tokenizer, into an existing empty folder.

    ``base``: what its config shall name as the model that it belongs to, ``revision`` that one's. ``auto`` keeps
    float32, as it was trained.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if source.kind == "model":
        for file in source.weights.iterdir():
            if file.is_file() and file.name in _ADAPTER_FILES:
                shutil.copyfile(file, folder / file.name)
    else:
        loaded = _load(source, "float32")
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise UserError(f"{source.weights} has no {ADAPTER_WEIGHTS}; export the run's checkpoint instead")
    tensors = load_file(file)
    if dtype != "auto":
        tensors = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in tensors.items()}
        save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base, "revision": revision}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _clean(folder)
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    return Written(sum(tensor.numel() for tensor in tensors.values()), "/".join(types), int(config["r"]))


_ADAPTER_FILES = {
    *(ADAPTER_CONFIG, ADAPTER_WEIGHTS),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "merges.txt", "spiece.model"),
}


def _load(source: Source, dtype: str) -> Any:
    """The policy with the source's weights in it, on the CPU (:class:`memtrain.engines.torch.model.LoadedModel`)."""
    from memtrain.engines.torch.model import load_model

    settings = source.recipe.model if source.recipe is not None else ModelSettings()
    settings = settings.model_copy(update={"dtype": dtype, "device": "cpu"})
    if source.kind == "model":
        return load_model(source.weights, settings.model_copy(update={"lora_rank": 0, "revision": None}))
    loaded = load_model(model_path(settings.name) or settings.name, settings)
    _put(loaded.model, source.weights)
    return loaded


def _put(model: Any, checkpoint: Path) -> None:
    """Copy a checkpoint's master weights into the model, rounded to its type; moments are not read."""
    import torch
    from safetensors import SafetensorError, safe_open

    wanted = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    try:
        with safe_open(checkpoint / "optimiser.safetensors", "pt") as file, torch.no_grad():
            names = {key.removeprefix("master/") for key in file.keys() if key.startswith("master/")}  # noqa: SIM118
            if names != wanted.keys():
                odd = sorted(names ^ wanted.keys())[0]
                raise ValueError(f"the tensor {odd} is in only one of the two")
            for name, parameter in wanted.items():
                parameter.copy_(file.get_tensor(f"master/{name}"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {checkpoint} does not fit the model of its recipe ({first_line(error)}); put the base model "
            "back that the run was started from"
        ) from None


def _stored_dtype(source: Source) -> str:
    """The type of the source's weights as the engine would hold them."""
    recipe = source.recipe
    if source.kind == "checkpoint" and recipe is not None and recipe.model.dtype != "auto":
        return recipe.model.dtype
    if source.kind == "model":
        name = str(source.weights)
    else:
        assert recipe is not None
        name = str(model_path(recipe.model.name) or recipe.model.name)
    return _dtype_of(name, recipe.model if recipe is not None else ModelSettings())


def _dtype_of(name: str, settings: ModelSettings) -> str:
    from transformers import AutoConfig

    for _ in range(8):  # an adapter may belong to a model that was an adapter
        config = Path(name) / ADAPTER_CONFIG
        if not config.is_file():
            break
        name = str(json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model {name} cannot be read ({first_line(error)}); put it back, or give --dtype") from None
    found = str(getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None))
    found = found.removeprefix("torch.")
    return found if found in ("bfloat16", "float16", "float32") else "bfloat16"


def _clean(folder: Path) -> None:
    """Take out what the savers wrote about this machine, and their own card."""
    (folder / "README.md").unlink(missing_ok=True)
    for name, keys in (
        ("config.json", ("_name_or_path",)),
        ("tokenizer_config.json", ("name_or_path", "is_local", "local_files_only")),
        ("generation_config.json", ("_from_model_config",)),
    ):
        file = folder / name
        if file.is_file():
            data = json.loads(file.read_text(encoding="utf-8"))
            kept = {key: value for key, value in data.items() if key not in keys}
            if kept != data:
                file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def weight_files(folder: Path) -> Iterator[Path]:
    """The files with weights of an exported folder."""
    for pattern in ("*.safetensors", "*.gguf"):
        yield from sorted(folder.glob(pattern))
