"""The physical limit: how fast this machine multiplies matrices of the model's own shapes, measured in the same run.

The rate of a batch of M rows is that of all linear layers of the model one after the other: total arithmetic over total
time. Decoding 64 sequences is held against M = 64, prefill and training against M = 2048. Weights are cycled through
fresh copies, as a forward pass meets each of them once: no cache keeps them warm between calls.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from memtrain.bench.flops import Flops
from memtrain.bench.harness import seconds_of
from memtrain.bench.models import Place
from memtrain.bench.peers.generate import load_peer
from memtrain.bench.progress import Progress
from memtrain.bench.settings import BenchSettings

ROWS = (16, 64, 2048, 4096)
SECONDS_EACH = 0.25
"""Time spent on one shape."""


def linear_shapes(model: Any) -> dict[str, tuple[int, int, int]]:
    """``{"out x in": (out, in, count)}`` over all linear layers; the output head apart under ``"head"``."""
    head = model.get_output_embeddings()
    counts = Counter(
        tuple(module.weight.shape)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    shapes = {f"{out} x {into}": (out, into, count) for (out, into), count in sorted(counts.items())}
    return shapes | {"head": (*head.weight.shape, 1)}


def measure_limit(model: Any, device: torch.device, dtype: torch.dtype, rows: Sequence[int] = ROWS) -> dict[str, Any]:
    """GFLOP/s of every linear shape at every batch size, the model's mean, and the memory bandwidth."""
    shapes = linear_shapes(model)
    found: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "rows": {}}
    for m in rows:
        rates, seconds, work = {}, 0.0, 0.0
        for name, (out, into, count) in shapes.items():
            each = product_seconds(m, out, into, device, dtype)
            rates[name] = 2.0 * m * out * into / each / 1e9
            if name != "head":
                seconds += count * each
                work += 2.0 * m * out * into * count
        found["rows"][str(m)] = {"gflops_by_shape": rates, "body_gflops": work / seconds / 1e9}
    found["bandwidth_gb_per_second"] = bandwidth(device)
    return found


def product_seconds(m: int, out: int, into: int, device: torch.device, dtype: torch.dtype) -> float:
    """Median seconds of one linear layer on ``m`` rows."""
    copies = max(2, min(16, (64 << 20) // (out * into * dtype.itemsize)))
    weights = [torch.randn(out, into, device=device).to(dtype) for _ in range(copies)]
    x = torch.randn(m, into, device=device).to(dtype)
    times: list[float] = []

    def every() -> None:
        for weight in weights:
            torch.nn.functional.linear(x, weight)

    with torch.no_grad():
        every()
        stop = time.perf_counter() + SECONDS_EACH
        while time.perf_counter() < stop or len(times) < 5:
            times.append(seconds_of(every, device) / copies)
    return median(times)


def bandwidth(device: torch.device) -> float:
    """GB/s of copying a block far larger than the caches, bytes read and written."""
    source = torch.ones(1 << 28 if device.type == "cuda" else 1 << 26, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(7)]
    return 2 * source.numel() * source.element_size() / median(times) / 1e9


def ideal_seconds(work: Flops, limit: dict[str, Any], rows: int) -> float:
    """Time of the products alone at the measured rates; attention is credited at the body's rate."""
    entry = limit["rows"][str(rows)]
    head = entry["gflops_by_shape"]["head"]
    return (work.body + work.attention) / (entry["body_gflops"] * 1e9) + work.head / (head * 1e9)


def bench_limit(settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    """The rates by themselves, without a contestant."""
    place = Place.of(settings)
    model = load_peer(place.folder, place.device, place.dtype)
    progress("products of the model's shapes")
    return measure_limit(model, place.device, place.dtype)
