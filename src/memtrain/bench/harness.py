"""The contest: everyone through the same work in one process, round after round, in turn.

A round runs every contestant once; the order turns by one place from round to round, so that nobody always comes after
the same neighbour. Before every run a fixed matrix product is timed: threads that an earlier contestant left spinning,
or a machine that changed its pace, show there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch

from memtrain.bench.progress import Progress

CONTROL_SIZE = 1024
CONTROL_RUNS = 30
SETTLE_SECONDS = 0.3
"""Pause before a run: worker threads of the one before go to sleep within milliseconds."""


@dataclass
class Contestant:
    """One way of doing the work."""

    name: str
    run: Callable[[], Any]
    """Does the whole work once; what it returns is thrown away."""
    units: float = 1.0
    """Tokens (or steps) that one run makes."""
    warm_up: Callable[[], Any] | None = None
    """Runs once before the first round, uncounted; default: ``run``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was set up, for the result file."""
    self_timed: bool = False
    """``run`` returns its own seconds, because it does other things around the work."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and quartiles of at least one value, with the values themselves."""
    ordered = sorted(values)
    low, high = (ordered[0], ordered[-1])
    if len(ordered) > 1:
        low, _, high = quantiles(ordered, n=4, method="inclusive")
    return {
        "median": median(ordered),
        "min": ordered[0],
        "max": ordered[-1],
        "quartiles": [low, high],
        "n": len(ordered),
        "values": list(values),
    }


def synchronise(device: torch.device) -> None:
    """Wait for the device: what was launched counts only when it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Of one call, the device idle before and after."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def timed(contestant: Contestant, device: torch.device) -> float:
    """Seconds of one run."""
    return float(contestant.run()) if contestant.self_timed else seconds_of(contestant.run, device)


def control_rate(device: torch.device) -> float:
    """GFLOP/s of a bfloat16 product of two square matrices, median of a few."""
    a, b = (torch.ones(CONTROL_SIZE, CONTROL_SIZE, dtype=torch.bfloat16, device=device) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds = [seconds_of(lambda: a @ b, device) for _ in range(CONTROL_RUNS)]
    return 2 * CONTROL_SIZE**3 / median(seconds) / 1e9


def contest(
    contestants: Sequence[Contestant],
    rounds: int,
    device: torch.device,
    progress: Progress | None = None,
    warm: bool = True,
    settle: float = SETTLE_SECONDS,
) -> dict[str, Any]:
    """Run all contestants ``rounds`` times in turn; returns one entry a contestant and the ratios to the first.

    Ratios are taken round by round (the same minute of the same machine) and above 1 where the first, us, is faster.
    """
    progress = progress or Progress()
    done, total = 0, len(contestants) * (rounds + warm)
    if warm:
        for contestant in contestants:
            progress(f"warm-up: {contestant.name}")
            (contestant.warm_up or contestant.run)()
            done += 1
            progress.count(done, total)
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    control: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        turn = number % len(contestants)
        for contestant in [*contestants[turn:], *contestants[:turn]]:
            progress(f"round {number + 1}/{rounds}: {contestant.name}")
            gc.collect()
            time.sleep(settle)
            control[contestant.name].append(control_rate(device))
            seconds[contestant.name].append(timed(contestant, device))
            done += 1
            progress.count(done, total)
    found: dict[str, Any] = {"contestants": {}, "rounds": rounds}
    for contestant in contestants:
        values = seconds[contestant.name]
        found["contestants"][contestant.name] = {
            "seconds": spread(values),
            "per_second": spread([contestant.units / value for value in values]),
            "units": contestant.units,
            "settings": dict(contestant.settings),
            "control_gflops_before": spread(control[contestant.name]),
        }
    first = contestants[0]
    found["ratios"] = {
        other.name: spread(
            [
                (first.units / mine) / (other.units / theirs)
                for mine, theirs in zip(seconds[first.name], seconds[other.name], strict=True)
            ]
        )
        for other in contestants[1:]
    }
    return found
