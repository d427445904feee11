"""A trained adapter as a folder that peft loads: fetched from the server, checked, and named after its base."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from memtrain.errors import UserError, first_line

WANTED = ("adapter_model.safetensors", "adapter_config.json")
LARGEST = 16 * 2**30
"""Bytes; a larger archive is no adapter."""


def fetch(url: str, folder: Path, base: str) -> None:
    """Write the adapter that ``url`` serves as a tar archive into ``folder``; ``base`` is the model it belongs to.

    Only the weights (safetensors) and the configuration are taken out of the archive, as regular files. Raises
    :class:`UserError` where it cannot be had or holds no adapter.
    """
    with tempfile.TemporaryFile() as archive:
        try:
            with _opened(url) as answer:
                shutil.copyfileobj(answer, archive)
            archive.seek(0)
            with tarfile.open(fileobj=archive) as tar:
                for name in WANTED:
                    _take(tar, name, folder / name)
        except (OSError, tarfile.TarError) as error:
            raise UserError(
                f"the adapter cannot be fetched from the Tinker server ({first_line(error)}); it stays there as the "
                "run's last state: resume to try again"
            ) from None
    _complete(folder, base)


def _opened(url: str) -> Any:
    if urlsplit(url).scheme not in ("http", "https"):
        raise OSError(f"it names {url.split('?')[0]}, which is no http address")
    return urllib.request.urlopen(url, timeout=600)


def _take(tar: tarfile.TarFile, name: str, target: Path) -> None:
    for member in tar.getmembers():
        if Path(member.name).name == name and member.isfile() and member.size <= LARGEST:
            content = tar.extractfile(member)
            if content is not None:
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                return
    raise OSError(f"the archive holds no {name}")


def _complete(folder: Path, base: str) -> None:
    """Name base and target modules, which a server need not know."""
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        with safe_open(str(folder / WANTED[0]), framework="pt") as weights:
            names = [name for name in weights.keys() if ".lora_" in name]  # noqa: SIM118
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"the Tinker server's adapter cannot be read ({first_line(error)})") from None
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names}
    config |= {
        "base_model_name_or_path": base,
        "target_modules": sorted(modules),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
