"""What data-parallel workers, a sampler of its own and a Tinker-API server exchange, by published formulae.

Workers hold all weights, float32 masters, gradients and moments each; once an optimiser step they sum their float32
gradients. With N workers, S bytes, B bytes/s that each sends and a hop of a seconds:

* a ring sends 2 (N-1)/N S from each worker, the least that any all-reduce can do, in 2 (N-1) hops (Patarasuk and Yuan,
  "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 2009; NVIDIA nccl-tests,
  ``doc/PERFORMANCE.md``);
* a double binary tree sends up to 2 S in 2 ceil(log2 N) hops (Sanders, Speck and Traeff, "Two-tree algorithms for full
  bandwidth broadcast, reduction and scan", 2009), so it wins where S is small.

NCCL takes the faster of the two. Nothing overlaps with computing: the exchange waits for the last micro-batch. Left
out: counts and metrics (kilobytes), copies of gradients on the device, waiting for the slowest worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memtrain.engines.workers import BUCKET_BYTES
from memtrain.planning import cost, memory
from memtrain.planning.cost import Assumptions, Place
from memtrain.planning.hardware import GB, Device
from memtrain.planning.memory import Memory
from memtrain.planning.models import ModelShape
from memtrain.planning.stages import Line
from memtrain.planning.work import Work

RANK = 16
"""LoRA rank that is shown beside a training of all weights."""
GRADIENT_BYTES = 4
"""Of a trained weight: gradients are summed in float32."""
JSON_TOKEN = 6.3
"""Bytes of a token id of a large vocabulary and its comma in JSON: how prompts go to a Tinker-API server."""
DATUM_TOKEN = 20.0
"""Bytes of a trained token in a ``forward_backward`` request of tinker 0.25: input id (int32), target (int64), log-prob
and advantage (float32)."""
LOGPROB_BYTES = 4.0
"""Of a log-prob that comes back."""
SAMPLED_TOKEN = 8.0
"""Bytes of a sampled token that comes back: its id (int32) and its log-prob (float32)."""


@dataclass(frozen=True)
class Replicated:
    """One way to train on workers that shard nothing, one worker a device."""

    rank: int
    """Of the LoRA adapter; 0 where all weights train."""
    need: Memory
    """Of each worker, in the stage that needs most."""
    fits: bool
    gradients: float
    """Bytes that are summed in an optimiser step."""
    sent: float
    """Bytes that each worker sends in a training step, which may hold several optimiser steps."""
    step: float | None
    """Seconds of a training step without the exchange; None where it does not fit."""
    in_node: float | None
    """Seconds of a training step's exchanges in one node; None where the workers are more than a node holds."""
    across: float
    """The same over the network between nodes."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of a training step between memtrain and a server of its own."""

    adapter: float
    """LoRA weights that a vLLM server reads after every optimiser step, float32."""
    adapter_rank: int
    to_server: float
    """To a Tinker-API server: prompts as JSON, rows with log-probs and advantages. No weights."""
    from_server: float
    """Back: sampled tokens with their log-probs, log-probs of trained and scored tokens."""


def ring_bytes(size: float, workers: int) -> float:
    """Bytes that each worker sends in a ring all-reduce of ``size`` bytes: 2 (N-1)/N of them."""
    return 2 * (workers - 1) / workers * size


def all_reduce_seconds(size: float, workers: int, bandwidth: float, hop: float) -> float:
    """Seconds of one all-reduce of ``size`` bytes: ring or double binary tree, whichever is faster.

    ``bandwidth``: bytes/s that a worker really sends; ``hop``: seconds of one hop.
    """
    if workers == 1:
        return 0.0
    ring = 2 * (workers - 1) * hop + ring_bytes(size, workers) / bandwidth
    tree = 2 * math.ceil(math.log2(workers)) * hop + 2 * size / bandwidth
    return min(ring, tree)


def exchange_seconds(size: float, workers: int, bandwidth: float, assumed: Assumptions) -> float:
    """Seconds of the gradients' exchange of one optimiser step over links of ``bandwidth`` bytes/s at best."""
    calls = max(1, math.ceil(size / BUCKET_BYTES))
    reached = bandwidth * assumed.link_share
    return calls * all_reduce_seconds(size / calls, workers, reached, assumed.hop * 1e-6)


def training_line(lines: Sequence[Line]) -> Line | None:
    """The stage whose steps are looked at: the first that trains by GRPO, MemTrain's before the task's."""
    trained = [line for line in lines if line.kind == "grpo" and line.count]
    return min(trained, key=lambda line: line.stage != "memtrain", default=None)


def replicated(
    shape: ModelShape,
    lines: Sequence[Line],
    device: Device,
    workers: int,
    wanted: int,
    rank: int,
    assumed: Assumptions,
) -> Replicated | None:
    """The steps of :func:`training_line` on ``workers`` that shard nothing; None where nothing trains.

    ``wanted``: sequences that decode together on each where they fit; ``rank``: 0 for all weights.
    """
    line = training_line(lines)
    if line is None:
        return None
    needs = {
        id(one): memory.memory(
            shape, one.work, replace(one.training, lora_rank=rank), device, workers, wanted, sharded=False
        )
        for one in lines
    }
    most = max(needs.values(), key=lambda need: need.peak)
    fits = all(memory.fits(need, device) for need in needs.values())
    trained = shape.lora_parameters(rank) if rank else shape.parameters
    size = float(GRADIENT_BYTES * trained)
    updates = line.work.updates / line.count
    place = Place(device, workers, wanted, needs[id(line)].cache)
    training = replace(line.training, lora_rank=rank)
    spent = sum(cost.seconds(line.work, shape, training, place, assumed).values()) / line.count
    network = min(device.link, assumed.interconnect * GB)
    inside = workers <= assumed.node_devices
    return Replicated(
        rank=rank,
        need=most,
        fits=fits,
        gradients=size,
        sent=updates * ring_bytes(size, workers),
        step=spent if fits else None,
        in_node=updates * exchange_seconds(size, workers, device.link, assumed) if inside else None,
        across=updates * exchange_seconds(size, workers, network, assumed),
    )


def ways(
    shape: ModelShape, lines: Sequence[Line], device: Device, workers: int, wanted: int, assumed: Assumptions
) -> list[Replicated]:
    """As the recipe trains and, where that is all weights, with an adapter of :data:`RANK`; none for one worker."""
    line = training_line(lines)
    if workers == 1 or line is None:
        return []
    ranks = [line.training.lora_rank] if line.training.lora_rank else [0, RANK]
    found = (replicated(shape, lines, device, workers, wanted, rank, assumed) for rank in ranks)
    return [one for one in found if one is not None]


def traffic(shape: ModelShape, lines: Sequence[Line]) -> Traffic | None:
    """What a step of :func:`training_line` exchanges with a vLLM server or a Tinker-API server, for all workers.

    Prompts are counted once for every sample: an upper bound, as the API draws several samples from one prompt.
    """
    line = training_line(lines)
    if line is None:
        return None
    rank = line.training.lora_rank or RANK
    step = 1 / line.count
    up, down = _tinker_bytes(line.work)
    return Traffic(4.0 * shape.lora_parameters(rank), rank, up * step, down * step)


def _tinker_bytes(work: Work) -> tuple[float, float]:
    scored = work.score.separate + work.reference.separate
    up = JSON_TOKEN * (work.prefill.separate + scored) + DATUM_TOKEN * work.train.separate
    down = SAMPLED_TOKEN * work.decoded + LOGPROB_BYTES * (work.train.separate + scored)
    return up, down


def sentences(name: str, on: Sequence[tuple[Device, int, bool, Sequence[Replicated]]]) -> list[str]:
    """One sentence a device that holds a sharded share of the model ``name`` but not all of it.

    ``on``: device, workers, whether a share of a sharded model fits, and the ways to train without sharding.
    """
    found = []
    for device, workers, sharded_fits, rows in on:
        if not rows or rows[0].fits or not sharded_fits:
            continue
        text = (
            f"{device.title}: each of {workers} data-parallel workers would need {rows[0].need.peak / GB:,.0f} GB for "
            f"{name}, as they shard nothing"
        )
        helps = [f"model.lora_rank={row.rank} ({row.need.peak / GB:,.0f} GB)" for row in rows[1:] if row.fits]
        helps.append('engine = "tinker" with an adapter, where a server shards the model')
        found.append(f"{text}; what helps: {' or '.join(helps)}")
    return found
