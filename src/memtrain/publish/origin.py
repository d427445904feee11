"""Where a model comes from: its base on the hub, that one's licence, and how the weights got here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from memtrain.assets import CORPORA, MODELS
from memtrain.publish.source import RECIPE, above, read_recipe

HUB_IDS = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gemma3-270m": "google/gemma-3-270m",
    "qwen2.5-coder-1.5b": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
}
"""What the built-in models are called on the hub."""
LICENCES = {"Apache-2.0": "apache-2.0", "Gemma terms of use": "gemma"}
"""Licences of built-in models by the hub's names."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DEEPEST = 8
"""A run may be trained from the model of another run, and so on."""


@dataclass(frozen=True)
class Origin:
    """The base model."""

    name: str
    """For a person: hub id, built-in name, or the last part of a path."""
    hub_id: str | None
    """Name on the hub; None where it is a local model of unknown origin."""
    licence: str | None
    """The hub's name of its licence; None where it is not known here."""
    note: str
    """What else a reader should know of the base weights; may be empty."""
    is_hub: bool
    """Whether the run loaded the weights from the hub under ``hub_id`` (so that an adapter fits them)."""


def origin_of(name: str, depth: int = 0) -> Origin:
    """The base of a recipe's ``model.name``: through the models of other runs down to what was not trained here."""
    asset = MODELS.get(name)
    if asset is not None:
        file = asset.files[0]
        note = (
            f"The base weights are those of the built-in model `{name}`: dequantised from `{file.name}` (sha256 "
            f"`{file.sha256}`), so they differ from the hub's by the rounding of that file."
        )
        return Origin(name, HUB_IDS.get(name), LICENCES.get(asset.licence), note, False)
    path = Path(name).expanduser()
    if path.exists():
        return _local(path, depth)
    if _HUB_ID.fullmatch(name):
        return Origin(name, name, None, "", True)
    return Origin(Path(name).name, None, None, "", False)


def _local(path: Path, depth: int) -> Origin:
    run = above(path)
    recipe = next((file for file in (path / RECIPE, run / "recipe.json") if file.is_file()), None)
    if recipe is not None and depth < _DEEPEST:
        below = read_recipe(recipe)
        first = origin_of(below.model.name, depth + 1)
        note = f"It was trained from the result of an earlier memtrain run, `{below.name}`. {first.note}".strip()
        return replace(first, note=note, is_hub=False)
    what = "a GGUF file" if path.suffix == ".gguf" else "a local model folder"
    return Origin(path.name, None, None, f"The base weights came from {what}, `{path.name}`.", False)


def corpus_licence(source: str) -> str | None:
    """Licence of a built-in corpus; None where it is not known here."""
    asset = CORPORA.get(source)
    return asset.licence if asset is not None else None


def hub_dataset(source: str) -> str | None:
    """Hub id of a corpus read from there (``hf:owner/name[:config]``), else None."""
    if not source.startswith("hf:"):
        return None
    name = source.removeprefix("hf:").split(":")[0]
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None
