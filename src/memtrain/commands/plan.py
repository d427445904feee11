"""``memtrain plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

from memtrain.commands.options import Overrides, RecipeName, flat
from memtrain.recipe import load_recipe


def plan(
    recipe: RecipeName,
    device: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME [NAME ...]",
            help="b200, h200, h100, a100-80, a100-40, mi300x, l40s, l4, rtx-5090, "
            "rtx-4090, rtx-3090, cpu (this machine).",
        ),
    ] = ("h100", "a100-80", "rtx-4090", "cpu"),
    devices: Annotated[int, arg(metavar="N", help="How many of them share the work evenly.")] = 1,
    stage: Annotated[
        tuple[Literal["memtrain", "qa", "compare"], ...],
        arg(help="What to plan. Default: memtrain, and qa and compare where the recipe names questions."),
    ] = (),
    price_per_hour: Annotated[float | None, arg(metavar="X", help="Price of one device for an hour.")] = None,
    kwh_carbon: Annotated[float, arg(metavar="G", help="Grams of CO2 equivalent a kWh.")] = 445.0,
    measure: Annotated[bool, arg(help="Run a few real steps here first, and plan this machine by them.")] = False,
    assume: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(metavar="NAME=VALUE [NAME=VALUE ...]", help="Change an assumption of those that the plan lists."),
    ] = (),
    out: Annotated[Path | None, arg(metavar="FILE", help="Also write everything as JSON.")] = None,
    overrides: Overrides = (),
) -> None:
    """What a recipe would cost, before spending: tokens, FLOPs, hours, memory, disk, energy, CO2e, money.

    Example: memtrain plan paper-qwen3-4b --device h100 --devices 8 --stage memtrain qa --price-per-hour 2.5
    """
    settings = load_recipe(recipe, flat(overrides))
    from memtrain import plan as logic

    options = logic.Options(device, devices, stage, price_per_hour, kwh_carbon, measure, flat(assume))
    logic.run(settings, options, out)
