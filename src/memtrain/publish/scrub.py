"""What of a run may be told to others: no path, address or name of the machine it ran on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from memtrain.recipe import Recipe

EXAMPLE_ADDRESS = "http://127.0.0.1:8000"
_PATH = re.compile(r"(?<![\w/.:])(?:~|\.\.?)?(?:/[^\s/'\"`,;:()\[\]{}<>|]+)+/?")
_KIND = re.compile(r"([a-z]+):(.+)")


def public(text: str) -> str:
    """A text in which every local path is cut to its last part."""
    return _PATH.sub(lambda match: PurePosixPath(match[0]).name, text)


def local_name(name: str) -> str:
    """The last part of a path; ``kind:PATH`` keeps its kind. Names of models and data sets stay as they are."""
    kind = _KIND.fullmatch(name)
    if kind is not None and not kind[2].startswith("//"):
        return f"{kind[1]}:{local_name(kind[2])}"
    if name.startswith(("/", "~", ".")) or name.count("/") > 1 or "\\" in name:  # a hub id has one stroke
        return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or "local"
    return name


def public_recipe(recipe: Recipe, model: str) -> dict[str, Any]:
    """The recipe as plain data that :func:`memtrain.recipe.parse_recipe` reads again.

    Paths are cut to their last part, addresses of servers become that of an example. ``model``: what ``model.name``
    shall say.
    """
    data = _public(recipe.model_dump(mode="json"))
    data["model"]["name"] = model
    return data


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str):
        return EXAMPLE_ADDRESS if value.startswith(("http://", "https://")) else local_name(value)
    return value


def public_summary(data: Mapping[str, Any]) -> dict[str, Any]:
    """``summary.json`` without paths and without the build of the system's kernel."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cleaned(item) for key, item in value.items()}
        if isinstance(value, list):
            return [cleaned(item) for item in value]
        return public(value) if isinstance(value, str) else value

    found = cleaned(data)
    found |= {key: local_name(str(data[key])) for key in ("model", "corpus") if key in data}
    if isinstance(found.get("machine"), dict) and "system" in found["machine"]:
        found["machine"]["system"] = str(found["machine"]["system"]).partition("-")[0]
    return found
