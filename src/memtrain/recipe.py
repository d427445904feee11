"""Recipes: TOML in, settings out, unknown keys refused.

A recipe is a TOML file with one table per section of ``settings.py``. ``base = "name-or-path"`` at the top makes it an
overlay: it states only what differs. Built-in recipes lie in ``memtrain/recipes/``; ``memtrain train demo-cpu`` finds
them by name.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from memtrain.errors import UserError
from memtrain.settings import (
    CorpusSettings,
    DocumentSettings,
    EntitySettings,
    EvalSettings,
    LogSettings,
    MemorySettings,
    Mode,
    ModelSettings,
    PrimingSettings,
    Recipe,
    RewardKind,
    SearchSettings,
    Section,
    TaskSettings,
    TrainSettings,
)

__all__ = [
    "CorpusSettings",
    "DocumentSettings",
    "EntitySettings",
    "EvalSettings",
    "LogSettings",
    "MemorySettings",
    "Mode",
    "ModelSettings",
    "PrimingSettings",
    "Recipe",
    "RewardKind",
    "SearchSettings",
    "Section",
    "TaskSettings",
    "TrainSettings",
    "apply_overrides",
    "builtin_recipes",
    "load_recipe",
    "parse_recipe",
]


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("memtrain") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(source: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe by built-in name or path, apply ``key.sub=value`` overrides, check it.

    Raises :class:`UserError` for a missing file, broken TOML, an unknown key (with the nearest known one), a value of
    the wrong type or range.
    """
    return parse_recipe(apply_overrides(_read(source, seen=()), overrides or []), source)


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Lay ``key.sub=value`` texts over a recipe's plain data."""
    for override in overrides:
        data = _merge(data, _parse_override(override))
    return data


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """Check plain data; ``source`` is named in errors."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(error, source)) from None


def _read(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(source)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            raise UserError(f"recipe {source} is not a file; built-in recipes: {', '.join(builtin_recipes())}")
        text = path.read_text(encoding="utf-8", errors="replace")
        sibling = path.parent
    elif source in builtin_recipes():
        entry = resources.files("memtrain") / "recipes" / f"{source}.toml"
        text, sibling = entry.read_text(encoding="utf-8"), None
    else:
        raise UserError(
            f"no recipe named {source!r}; built-in recipes: {', '.join(builtin_recipes())}, or give a .toml file"
        )
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {source} is not valid TOML: {error}") from None
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(f'recipe {source}: key "base" must be the name or path of a recipe, not {base!r}')
    if sibling is not None and base.endswith(".toml") and not Path(base).is_absolute():
        base = str(sibling / base)
    if base in (*seen, source):
        raise UserError(f'recipe {source}: key "base" leads back to {base}; remove the cycle')
    return _merge(_read(base, (*seen, source)), data)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    short = {"model": "name", "corpus": "source"}
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if key in short and isinstance(value, str) and isinstance(old, dict):
            value = {short[key]: value}
        if key in short and isinstance(old, str) and isinstance(value, dict):
            old = {short[key]: old}
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {text!r} is not of the form section.key=value, for example train.steps=10")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _explain(error: ValidationError, source: str) -> str:
    sentences = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), _known_keys(problem["loc"]), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            sentences.append(f"unknown key {key!r}: {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            # A rule about several keys of a table is not about the table's whole content.
            value = "" if isinstance(problem["input"], dict) else f" is {problem['input']!r}"
            sentences.append(f"key {key!r}{value}: {message}")
    return f"recipe {source}: " + "; ".join(sentences)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return [*section.model_fields, *(["base"] if section is Recipe else [])]
