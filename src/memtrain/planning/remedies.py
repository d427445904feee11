"""Sentences for a model that does not fit: how much is missing where, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from memtrain.planning import hardware
from memtrain.planning.compute import Training
from memtrain.planning.hardware import Device
from memtrain.planning.memory import USABLE, activations, fits, memory
from memtrain.planning.models import ModelShape
from memtrain.planning.result import OnDevice
from memtrain.planning.stages import Line
from memtrain.recipe import Recipe

RANK = 16
"""LoRA rank of the advice."""
MOST_DEVICES = 1024
GB = hardware.GB
Changed = Callable[[Training], Training]


def sentences(
    recipe: Recipe, shape: ModelShape, lines: Sequence[Line], on: Sequence[OnDevice], devices: int
) -> list[str]:
    """One sentence a device that is too small; one more where not even the largest named GPU would do."""
    small = [one for one in on if not one.fits]
    biggest = hardware.largest()
    nowhere = bool(small) and not _fits(shape, lines, biggest, devices)
    found = []
    for one in small:
        device, each = one.place.device, "" if one.place.devices == 1 else f" on each of {one.place.devices}"
        text = (
            f"{device.title}: {recipe.model.name} does not fit, it needs {one.need.peak / GB:,.0f} GB{each}, "
            f"{_missing(one.need.peak, device):,.0f} GB more than are free"
        )
        found.append(text if nowhere else f"{text}; {_help(recipe, shape, lines, device, one.place.devices)}")
    if nowhere:
        peak = _peak(shape, lines, biggest, devices)
        found.append(
            f"no named GPU is large enough with --devices {devices}: the largest, {biggest.title}, lacks "
            f"{_missing(peak, biggest):,.0f} of {peak / GB:,.0f} GB; {_help(recipe, shape, lines, biggest, devices)}"
        )
    return found


def _help(recipe: Recipe, shape: ModelShape, lines: Sequence[Line], device: Device, devices: int) -> str:
    """What would help, each with what is needed then."""
    changes: dict[str, Changed] = {}
    if not recipe.model.lora_rank:
        changes[f"model.lora_rank={RANK}"] = lambda training: replace(training, lora_rank=RANK)
    if not recipe.train.gradient_checkpointing:
        changes["train.gradient_checkpointing=true"] = lambda training: replace(training, checkpointing=True)
    options = [_option(name, shape, lines, device, devices, change) for name, change in changes.items()]
    budget = recipe.train.micro_batch_tokens
    saved = max(activations(shape, line.work.largest_pass / 2, line.training) for line in lines)
    if saved > _peak(shape, lines, device, devices) / 20:
        options.append(f"train.micro_batch_tokens={budget // 2} (about {saved / GB:,.0f} GB less)")
    sharded: dict[str, Changed] = {"": _same}
    for name, change in changes.items():
        if not _fits(shape, lines, device, devices, change):
            sharded[f"{name} and "] = change
    for name, change in sharded.items():
        n = devices * 2
        while n <= MOST_DEVICES and not _fits(shape, lines, device, n, change):
            n *= 2
        if n <= MOST_DEVICES:
            options.append(_option(f"{name}sharding over --devices {n}", shape, lines, device, n, change))
    return f"what helps: {', '.join(options)}" if options else "a smaller model helps"


def _option(name: str, shape: ModelShape, lines: Sequence[Line], device: Device, devices: int, change: Changed) -> str:
    need = _peak(shape, lines, device, devices, change)
    enough = "" if _fits(shape, lines, device, devices, change) else ", still too much"
    return f"{name} ({need / GB:,.0f} GB{enough})"


def _same(training: Training) -> Training:
    return training


def _missing(peak: float, device: Device) -> float:
    return max(0.0, peak - device.memory * USABLE) / GB


def _peak(shape: ModelShape, lines: Sequence[Line], device: Device, devices: int, change: Changed = _same) -> float:
    return max(memory(shape, one.work, change(one.training), device, devices, 1).peak for one in lines)


def _fits(shape: ModelShape, lines: Sequence[Line], device: Device, devices: int, change: Changed = _same) -> bool:
    return all(fits(memory(shape, one.work, change(one.training), device, devices, 1), device) for one in lines)
