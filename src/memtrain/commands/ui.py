"""``memtrain ui``."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from memtrain.commands.options import MODELS_TEXT, flat
from memtrain.commands.serve import ServeOverrides, ServeRecipe, StoreUrl


def ui(
    target: Annotated[
        Positional[str],
        arg(metavar="RUN_OR_MODEL", help=f"A run's folder, a checkpoint or adapter, a model. Models {MODELS_TEXT}."),
    ],
    base: Annotated[
        str | None,
        arg(
            metavar="MODEL",
            help="Compare with this one, side by side. Default: the model that the run began with; none: no other.",
        ),
    ] = None,
    recipe: ServeRecipe = None,
    host: Annotated[
        str,
        arg(metavar="HOST", help="Who may look: 127.0.0.1 is this machine alone; others need keys (memtrain keys)."),
    ] = "127.0.0.1",
    port: Annotated[int, arg(metavar="PORT", help="0 takes any that is free.")] = 8081,
    store: StoreUrl = "runs/ui/sessions.db",
    browser: Annotated[
        FlagCreatePairsOff[bool], arg(name="open", help="Open the page in this machine's browser.")
    ] = False,
    overrides: ServeOverrides = (),
) -> None:
    """A local web page: load a text or chat, see the memory change piece by piece, ask it, compare base and trained.

    Example: memtrain ui runs/demo --open

    Example: memtrain ui smollm2-135m --port 9000
    """
    from memtrain.ui import ui as serve_page

    serve_page(target, base, recipe, flat(overrides), store=store, host=host, port=port, browser=browser)
