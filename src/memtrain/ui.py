"""``memtrain ui``: which models the page compares, and the server that serves both."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

from rich.console import Console
from rich.text import Text

from memtrain import serve
from memtrain.errors import UserError

ALONE = "none"
"""``--base none``: nothing to compare with."""


def ui(
    target: str,
    base: str | None,
    recipe: str | None,
    overrides: list[str],
    *,
    store: str,
    host: str,
    port: int,
    browser: bool = False,
) -> None:
    """Serve the page over ``target`` and the model to compare it with, until told to stop.

    ``browser``: open the page in this machine's browser. Raises :class:`UserError` for what the user can mend.
    """

    def begun(address: str) -> None:
        Console().print(Text(f"page: {address}/", style="bold"), soft_wrap=True)
        if browser and not webbrowser.open(f"{address}/"):
            Console().print(Text("no browser could be started here; open that address in one"))

    targets = targets_of(target, base)
    serve.serve(targets, None, recipe, overrides, store=store, host=host, port=port, page=True, on_start=begun)


def targets_of(target: str, base: str | None) -> list[str]:
    """What :func:`memtrain.serve.serve` is to serve, base first as it is read: left before, right after.

    A run is compared with the model it began with unless ``base`` names another. Raises :class:`UserError` for a run
    that has no model yet.
    """
    file = Path(target) / "recipe.json"
    if file.is_file():
        if not (file.parent / "model").is_dir():
            raise UserError(
                f"{target} has no model yet: its run is not finished (see memtrain watch {target}); wait for it, go on "
                "with --resume, or name one of its checkpoints"
            )
        if base is None:
            try:
                base = str(json.loads(file.read_text(encoding="utf-8"))["model"]["name"])
            except (OSError, ValueError, KeyError, TypeError):
                raise UserError(f"{file} cannot be read; name the model to compare with: --base MODEL") from None
    if base is None or base == ALONE:
        return [target]
    return [f"base={base}", f"trained={target}"]
