"""A GGUF file becomes a folder in transformers format: once, in bfloat16, with tokenizer and chat template.

The only place in this package that imports torch, and only inside the function that needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memtrain.assets.cache import cache_home, disk_errors, intact, locked, mark_verified, require_space, sha256_of
from memtrain.assets.catalog import Asset
from memtrain.assets.download import fetch
from memtrain.assets.progress import working
from memtrain.errors import UserError

VERSION = 1
"""Raise it when a conversion would give other files: old folders are then left alone and made anew."""
BYTES_PER_SECOND = 6e6
"""GGUF bytes converted in a second on one slow core: what the announced time is reckoned with."""


def converted(asset: Asset) -> Path:
    """Folder of a built-in model in transformers format, fetched and converted on the first use.

    It lies beside the GGUF's own folder; a folder with a missing or changed file is made anew.
    """
    file = asset.files[0]
    return _convert_once(f"{asset.name}-bf16-{file.sha256[:8]}", lambda: fetch(asset) / file.name, asset.name)


def converted_file(source: Path) -> Path:
    """Folder in transformers format of a user's own GGUF file; made anew when the file changes."""
    stat = source.stat()
    key = f"{source.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    name = f"{source.stem}-bf16-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return _convert_once(name, lambda: source, source.name)


def _convert_once(name: str, source: Callable[[], Path], label: str) -> Path:
    folder = cache_home() / "models" / f"{name}-v{VERSION}"
    if intact(folder):
        return folder
    file = source()
    with disk_errors(folder), locked(folder):
        if intact(folder):  # another process was faster
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        seconds = max(5, round(file.stat().st_size / BYTES_PER_SECOND))
        with working(f"converting {label} to safetensors, once (about {seconds} s)"):
            convert_gguf(file, folder)
    return folder


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file ``source`` to the new ``folder``: safetensors, config, tokenizer, template.

    Weights are dequantised to bfloat16. The folder appears in one move, when everything in it is written and its
    checksums are noted. Raises :class:`UserError` where the file is no GGUF or its architecture is unknown, or the
    disk is full.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    # Four-bit blocks grow to 16 bits a weight; a sixth on top for the tokenizer and slack.
    require_space(folder.parent, int(source.stat().st_size * 4.2))
    # Releases that keep GGUF blocks packed by default must be told to unpack them, or saving is refused.
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with disk_errors(folder.parent), _quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
                model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, **options)
            except (ImportError, ValueError, KeyError, RuntimeError) as error:
                message = " ".join(str(error).split())
                raise UserError(f"{source} cannot be converted from GGUF: {message}") from None
            if getattr(model.config, "quantization_config", None) is not None:
                model = model.dequantize()
            _repair_tokenizer(tokenizer, source, model.config)
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            _repair_config(scratch, source.stem)
            os.chmod(scratch, 0o755)  # temporary folders and safetensors files come private; a cache may be shared
            for path in scratch.iterdir():
                os.chmod(path, 0o644)
            mark_verified(scratch, {path.name: sha256_of(path) for path in sorted(scratch.iterdir())})
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _repair_tokenizer(tokenizer: Any, source: Path, config: Any) -> None:
    """Put back what the conversion of GGUF tokenizers loses.

    SmolLM's tokenizer splits numbers into single digits before anything else (``tokenizer.ggml.pre = smollm``; the
    published tokenizer.json says ``Digits(individual_digits)`` then ``ByteLevel``); without it a line break before a
    number is cut differently from what the model was trained on.
    """
    if _gguf_text_field(source, "tokenizer.ggml.pre") == "smollm":
        from tokenizers import pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    if window:
        tokenizer.model_max_length = window


def _gguf_text_field(source: Path, key: str) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(source).get_field(key)
    return None if field is None else str(field.contents())


def _repair_config(folder: Path, name: str) -> None:
    """The config names the temporary file it came from; name the model instead."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["_name_or_path"] = name
    config.pop("_model_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars of other libraries inside our own."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF loader's bar has no switch
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
