"""A finished plan as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memtrain.planning.communication import Replicated, Traffic
from memtrain.planning.cost import Assumptions, Bill, Place
from memtrain.planning.memory import Memory
from memtrain.planning.models import ModelShape
from memtrain.planning.stages import Line
from memtrain.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    names: Sequence[str] = ("h100", "a100-80", "rtx-4090", "cpu")
    """Devices."""
    devices: int = 1
    stages: Sequence[str] = ()
    price: float | None = None
    """Of one device for an hour."""
    carbon: float = 445.0
    """Grams of CO2 equivalent a kWh."""
    measure: bool = False
    assume: Sequence[str] = ()


@dataclass(frozen=True)
class CompareRow:
    """A row of the comparison: what has to be run for it that no row before it has run."""

    title: str
    lines: list[Line]
    times: int = 1
    """Seeds."""
    longer: bool = False
    """Whether the seconds of the MemTrain stage's training come on top, as task training."""


@dataclass(frozen=True)
class OnDevice:
    """The plan for one kind of device."""

    place: Place
    need: Memory
    fits: bool
    seconds: list[dict[str, float]]
    """By phase, for each line."""
    rows: list[float]
    """Seconds of each row of the comparison, all seeds."""
    bill: Bill
    """Of the stages asked for, or of the comparison where that is asked for."""
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds seen in measured steps, by stage and kind of work."""
    efficiencies: dict[str, dict[str, float]] = field(default_factory=dict)
    """What the measured steps reached, by stage."""
    workers: list[Replicated] = field(default_factory=list)
    """Ways to train on as many data-parallel workers, which shard nothing; none for one device."""

    @property
    def total(self) -> float:
        """Seconds of all lines."""
        return sum(sum(phases.values()) for phases in self.seconds)


@dataclass(frozen=True)
class Plan:
    """Everything that was reckoned."""

    recipe: Recipe
    shape: ModelShape
    assumed: Assumptions
    options: Options
    lines: list[Line]
    rows: list[CompareRow]
    disk: dict[str, float]
    on: list[OnDevice]
    notes: list[str]
    """What a reader should know: estimates, what does not fit."""
    traffic: Traffic | None = None
    """What a step exchanges with a server of its own; None where nothing trains."""
