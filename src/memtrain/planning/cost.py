"""From work to hours, and from hours to energy, carbon and money."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from memtrain.errors import UserError
from memtrain.planning import compute
from memtrain.planning.compute import Training
from memtrain.planning.hardware import Device
from memtrain.planning.memory import cache_bytes
from memtrain.planning.models import ModelShape
from memtrain.planning.work import DecodeBatch, Passes, Work

ABOUT = {
    "prefill": "Share of the device's peak arithmetic that prefill reaches",
    "decode": "Share of peak bandwidth (or arithmetic, where that is slower) that decoding reaches",
    "score": "As prefill, for log-probs of known answers",
    "train": "As prefill, for the update: reference, forward and backward passes, optimiser",
    "other": "Time for everything else (tokenising, rewards, waiting, checkpoints), as a share of the rest",
    "launch": "Microseconds that a layer takes at least in a decoding step on a GPU; ten times that in any other pass",
    "memory_fill": "Mean length of a memory as a share of memory.memory_tokens, the longest at the limit; once primed, "
    "memories are taken to be as long as the notes of priming",
    "answer_tokens": "Mean length of a sampled answer, at most memory.answer_tokens",
    "kept_groups": "Share of the groups with exact or F1 rewards that train; those with all rewards equal are dropped",
    "board_load": "Mean power of a board, as a share of its limit",
    "host_share": "Power of processors, memory and network for each watt of the boards",
    "pue": "Power usage effectiveness: what the building draws for each watt of the machines",
    "node_devices": "Devices in a node; more workers than that exchange gradients over the network",
    "interconnect": "GB/s that a node sends to the next, all its network adapters together; 400 Gb/s are 50",
    "link_share": "Share of a link's bandwidth that an all-reduce reaches",
    "hop": "Microseconds of one hop of an all-reduce",
    "server_link": "GB/s between memtrain and a server of its own (vLLM, Tinker API); 1 Gb/s is 0.125",
}
"""What each assumption means."""
UNBOUNDED = {
    *("other", "launch", "host_share", "pue", "answer_tokens"),
    *("node_devices", "interconnect", "hop", "server_link"),
}
"""Assumptions that are no share of something."""


@dataclass(frozen=True)
class Assumptions:
    """What a plan has to believe; :data:`ABOUT` says what each is, ``--assume name=value`` sets it."""

    prefill: float = 0.45
    decode: float = 0.5
    score: float = 0.45
    train: float = 0.4
    other: float = 0.1
    launch: float = 20.0
    memory_fill: float = 0.8
    answer_tokens: float = 32.0
    kept_groups: float = 1.0
    board_load: float = 0.8
    host_share: float = 0.25
    pue: float = 1.2
    node_devices: float = 8
    interconnect: float = 50.0
    link_share: float = 0.75
    hop: float = 15.0
    server_link: float = 0.125

    def changed(self, pairs: list[str]) -> Assumptions:
        """With ``name=value`` texts laid over. Raises :class:`UserError` for an unknown name or a value below zero."""
        values: dict[str, float] = {}
        for pair in pairs:
            name, _, text = pair.partition("=")
            known = [field.name for field in fields(self)]
            if name not in known:
                raise UserError(f"--assume {pair}: no assumption named {name!r}; choose from {', '.join(known)}")
            try:
                values[name] = float(text)
            except ValueError:
                raise UserError(
                    f"--assume {pair}: {text!r} is not a number; give one, for example {name}=0.5"
                ) from None
            least = 0.0 if name in ("other", "launch", "host_share", "hop") else 1e-6
            most = 1e6 if name in UNBOUNDED else 1.0
            if not least <= values[name] <= most:
                raise UserError(f"--assume {pair}: {name} must lie between {least:g} and {most:g}")
        return replace(self, **values)


@dataclass(frozen=True)
class Place:
    """What the work runs on."""

    device: Device
    devices: int
    """How many share the work evenly."""
    slots: int
    """Most sequences that decode together on each."""
    cache: float = math.inf
    """Bytes that keys and values may take on each."""

    def decoding_together(self, batch: DecodeBatch, shape: ModelShape, training: Training) -> float:
        """How many sequences of a batch decode at a time on each device, on average; at least one."""
        room = self.cache / cache_bytes(batch, shape, training)
        return max(1.0, min(self.slots, room, batch.sequences / self.devices))


def seconds(work: Work, shape: ModelShape, training: Training, place: Place, assumed: Assumptions) -> dict[str, float]:
    """Seconds of each phase; ``other`` on top."""
    flops = compute.by_phase(shape, work, training)
    speed = place.device.flops * place.devices
    launch = 0.0 if place.device.is_cpu else assumed.launch * 1e-6 * shape.layers

    def passes(phase: str, part: Passes, share: float, times: float = 1.0) -> float:
        return max(flops[phase] / (speed * share), part.passes * 10 * times * launch / place.devices)

    found = {
        "prefill": passes("prefill", work.prefill, assumed.prefill),
        "decode": sum(
            decode_seconds(batch, shape, training, place, assumed.decode, launch) * batch.repeat
            for batch in work.decode
        ),
        "score": passes("score", work.score, assumed.score),
        "reference": passes("reference", work.reference, assumed.train),
        "train": passes("train", work.train, assumed.train, 4.0 if training.checkpointing else 3.0),
    }
    return found | {"other": assumed.other * sum(found.values())}


def decode_seconds(
    batch: DecodeBatch, shape: ModelShape, training: Training, place: Place, share: float = 1.0, launch: float = 0.0
) -> float:
    """Seconds of one batch: every step reads all weights and the keys and values of whoever decodes.

    ``sequences / devices`` run on each device, some of them at a time (:meth:`Place.decoding_together`), so there are
    as many steps as the longest completion has tokens, or as all slots together need. A shared prefix is read once a
    step for all who share it. ``share`` of the peak is reached; no step takes less than ``launch`` seconds.
    """
    if not batch.tokens:
        return 0.0
    tokens = batch.tokens / place.devices
    steps = max(batch.longest, tokens / place.decoding_together(batch, shape, training))
    weights = (shape.body + shape.head) * training.weight_bytes * steps
    cached = batch.cached / batch.sequences  # a sequence's share of the prompts
    own = (batch.tokens / batch.sequences - 1) / 2
    cache = shape.kv_width_all * training.weight_bytes * tokens * (cached + own)
    arithmetic = compute.decoding(shape, batch) / place.devices / place.device.flops
    return max(max((weights + cache) / place.device.bandwidth, arithmetic) / share, steps * launch)


@dataclass(frozen=True)
class Bill:
    """What hours on devices come to."""

    hours: float
    """Wall time."""
    device_hours: float
    kwh: float
    co2_kg: float
    money: float | None
    """None without a price."""


def bill(total_seconds: float, place: Place, assumed: Assumptions, carbon: float, price: float | None) -> Bill:
    """``carbon``: grams of CO2 equivalent a kWh; ``price``: of one device for an hour."""
    hours = total_seconds / 3600
    device_hours = hours * place.devices
    kilowatts = place.device.watts * assumed.board_load * (1 + assumed.host_share) / 1000
    kwh = device_hours * kilowatts * assumed.pue
    money = None if price is None else device_hours * price
    return Bill(hours, device_hours, kwh, kwh * carbon / 1000, money)
