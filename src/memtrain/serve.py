"""``memtrain serve``: models by name, each with the chat agent over it, behind one application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.addresses import is_loopback
from memtrain.errors import UserError
from memtrain.memory.chat import ChatAgent
from memtrain.memory.text_model import EngineModel
from memtrain.recipe import Recipe, apply_overrides, load_recipe, parse_recipe
from memtrain.report.console import Screen

DEMO = "demo-cpu"
"""Its model is served where none is named, and by its sizes and prompts."""
PLAIN: dict[str, Any] = {
    "name": "serve",
    "memory": {"chunk_tokens": 2000, "memory_tokens": 512, "answer_tokens": 512, "style": "full"},
}
"""Sizes and prompts of a model that brings no recipe: every turn fits a window of 4,096 tokens."""
RUN, EXPORTED, CHECKPOINT = "recipe.json", "memtrain.json", "engine.json"
"""Files by which a run, an exported model and a checkpoint are known."""


@dataclass(frozen=True)
class Upstream:
    """An OpenAI-compatible server to stand in front of."""

    url: str
    model: str = ""
    """Its name there; empty: the only one it has."""
    key_env: str = ""
    """Environment variable with the key."""
    tokenizer: str = ""
    """A transformers tokenizer, to count with; empty: tokens are estimated."""


@dataclass(frozen=True)
class Served:
    """A model in this process, under a name, with its recipe."""

    name: str
    recipe: Recipe
    checkpoint: Path | None = None
    """Weights of a run that is not finished, to be laid over the recipe's model."""


def serve(
    targets: Sequence[str],
    upstream: Upstream | None,
    recipe: str | None,
    overrides: list[str],
    *,
    store: str,
    host: str,
    port: int,
    allow_hosts: Sequence[str] = (),
    page: bool = False,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Load the models, open the store, answer until told to stop.

    ``targets``: models, folders and runs, each also as NAME=PATH. ``page``: with the web page of ``memtrain ui``.
    ``on_start`` gets the address. Raises :class:`UserError` for what the user can mend.
    """
    from memtrain.serving.app import make_app
    from memtrain.serving.limits import LOOPBACK_NAMES
    from memtrain.serving.owners import Owners
    from memtrain.serving.run import check_reach, run
    from memtrain.serving.store import Store

    found = [] if upstream is not None and not targets else resolve(targets, recipe, overrides)
    front = _recipe(recipe, overrides) if upstream is not None else None
    settings = (found[0].recipe if found else front or Recipe()).serve
    opened = Store(store, keep_turns=settings.keep_turns)
    try:
        check_reach(host, Owners(opened))  # before minutes of loading
        agents: dict[str, ChatAgent] = {}
        with Screen("memtrain serve") as screen:
            if upstream is not None and front is not None:
                screen.stage(f"asking {upstream.url}", 0)
                agents |= upstream_agents(upstream, front)
            for one in found:
                if one.name in agents:
                    raise UserError(f"two models are called {one.name}; name one of them yourself: NAME=PATH")
                agents[one.name] = load_agent(one.recipe, screen, one.checkpoint)
        hosts = {*LOOPBACK_NAMES, host, *allow_hosts} if is_loopback(host) or allow_hosts else ()
        console = Console()

        def begun(address: str) -> None:
            console.print(Text(f"serving {', '.join(agents)} at {address}/v1 (Ctrl-C ends it)"), soft_wrap=True)
            console.print(Text(f"sessions: {opened.database.name}"), soft_wrap=True)
            if on_start is not None:
                on_start(address)

        run(make_app(agents, opened, settings, page=page, hosts=hosts), host, port, begun)
    finally:
        opened.close()


def resolve(targets: Sequence[str], recipe: str | None, overrides: list[str]) -> list[Served]:
    """Names and recipes of what is to be served, without loading anything; ``recipe`` goes before all others.

    A run's folder, and whatever lies in one, brings the run's recipe, an exported model its own; the others take the
    first of these, else the demo's for the demo's model and :data:`PLAIN` for any other.
    """
    parsed = [_parse(target) for target in targets] or [("", "")]
    recipes = [_recipe_beside(path) for _, path in parsed]
    first = next((str(file) for file in recipes if file is not None), None)
    served: list[Served] = []
    for (name, path), beside in zip(parsed, recipes, strict=True):
        own = str(beside) if beside is not None else None
        settings = _recipe(recipe or own or first or _demo(path), overrides)
        if (Path(path) / CHECKPOINT).is_file():
            served.append(Served(name or Path(path).name, settings, Path(path)))
            continue
        model, folder = path or settings.model.name, Path(path)
        if beside is not None and beside.name == RUN and beside.parent.resolve() == folder.resolve():
            model = str(folder / "model")
            if not (folder / "model").is_dir():
                raise UserError(
                    f"{path} has no model yet: its run is not finished; serve one of its checkpoints, a folder below "
                    f"{folder / 'checkpoints'}"
                )
        settings = settings.with_model(name=model, lora_rank=0)  # an adapter comes merged
        if Path(model).exists():
            settings = settings.model_copy(update={"engine": "torch"})
        served.append(Served(name or _name(model), settings))
    names = [one.name for one in served]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name}; name one of them yourself: NAME=PATH")
    return served


def load_agent(recipe: Recipe, screen: Screen, checkpoint: Path | None = None) -> ChatAgent:
    """The chat agent over a model in this process, with the weights of a checkpoint if one is given."""
    from memtrain.pipeline import load_engine

    engine = load_engine(recipe, screen, serving=True)
    if checkpoint is not None:

        async def restore() -> None:
            await engine.load(checkpoint)
            await engine.reset_optimiser()  # it came with the weights, and takes twice their room

        asyncio.run(restore())
    return ChatAgent(EngineModel(engine), recipe.memory, recipe.chat)


def upstream_agents(upstream: Upstream, recipe: Recipe) -> dict[str, ChatAgent]:
    """The chat agent over a server's model, under the name that it has there."""
    from memtrain.serving.upstream import ANY_WINDOW, UpstreamModel, open_client, served

    async def look() -> dict[str, int]:
        client = open_client(upstream.url, upstream.key_env).with_options(max_retries=0)
        async with client:
            return await served(client)

    try:
        models = asyncio.run(look())
    except UserError:
        if not upstream.model:
            raise
        models = {}  # it may come up later, and may keep no list
    name = upstream.model or (next(iter(models)) if len(models) == 1 else "")
    if not name:
        known = ", ".join(sorted(models)[:20]) or "none"
        raise UserError(f"{upstream.url} has several models or none ({known}): choose one with --upstream-model")
    model = UpstreamModel(
        open_client(upstream.url, upstream.key_env),
        name,
        context_tokens=models.get(name) or ANY_WINDOW,
        count=_counter(upstream.tokenizer) if upstream.tokenizer else None,
    )
    return {name: ChatAgent(model, recipe.memory, recipe.chat)}


def _counter(name: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    from memtrain.assets import model_path

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model_path(name) or name)
    except (OSError, ValueError) as error:
        raise UserError(f"--tokenizer {name} cannot be loaded ({str(error).splitlines()[0]})") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _demo(path: str) -> str | None:
    """The demo's recipe for its own model."""
    return DEMO if path in ("", load_recipe(DEMO).model.name) else None


def _parse(target: str) -> tuple[str, str]:
    """``NAME=PATH`` or a path alone, which may have a ``=`` in it if it is there."""
    name, equals, path = target.partition("=")
    if not equals or Path(target).exists():
        return "", target
    if not name or not path:
        raise UserError(f"{target!r} is not of the form NAME=PATH, for example trained=runs/demo")
    return name, path


def _recipe_beside(path: str) -> Path | None:
    """The recipe of an exported model, or of the run that this is or lies in."""
    place = Path(path)
    if not path or not place.exists():
        return None
    if (place / EXPORTED).is_file():
        return place / EXPORTED
    for folder in [place, *place.resolve().parents[:2]]:
        if (folder / RUN).is_file():
            return folder / RUN
    needed = ("config.json", "adapter_config.json")
    if place.is_dir() and not any((place / name).exists() for name in needed):
        raise UserError(f"{path} is neither a run (no {RUN}) nor a model (no {' or '.join(needed)})")
    return None


def _name(model: str) -> str:
    """A run's model goes by the run's name."""
    place = Path(model)
    return place.resolve().parent.name if place.name == "model" and place.is_dir() else place.name


def _recipe(source: str | None, overrides: list[str]) -> Recipe:
    """A recipe by name or file, or a run's recipe.json, or the plain one, with overrides."""
    if source is None:
        return parse_recipe(apply_overrides(PLAIN, overrides), "of memtrain serve")
    if source.endswith(".json"):
        try:
            data = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{source} cannot be read ({error}); give --recipe") from None
        return parse_recipe(apply_overrides(data, overrides), source)
    return load_recipe(source, overrides)
