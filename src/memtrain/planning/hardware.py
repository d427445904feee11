"""Named devices, by what their makers publish: dense bfloat16 arithmetic, memory, bandwidth, board power."""

from __future__ import annotations

import os
from dataclasses import dataclass

from memtrain.errors import UserError

GB = 1e9


@dataclass(frozen=True)
class Device:
    """One accelerator, or this machine's processor."""

    name: str
    """What ``--device`` calls it."""
    title: str
    flops: float
    """Peak of dense bfloat16 products with float32 sums, FLOP/s (without sparsity)."""
    bandwidth: float
    """Peak of its memory, bytes/s."""
    memory: float
    """Bytes."""
    watts: float
    """Board power (of the whole package for a processor)."""
    year: int
    link: float
    """Bytes/s that it sends to the others of its node (NVLink, Infinity Fabric, else PCI Express), one direction."""
    source: str

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's processor."""
        return self.name == "cpu"


_GPUS = (
    Device("b200", "B200 180GB (HGX)", 2.25e15, 8.0e12, 180 * GB, 1000, 2024, 900 * GB, "NVIDIA HGX B200 data sheet"),
    Device("h200", "H200 SXM 141GB", 989e12, 4.8e12, 141 * GB, 700, 2023, 450 * GB, "NVIDIA H200 data sheet"),
    Device("h100", "H100 SXM 80GB", 989e12, 3.35e12, 80 * GB, 700, 2022, 450 * GB, "NVIDIA H100 data sheet"),
    Device("a100-80", "A100 SXM 80GB", 312e12, 2.039e12, 80 * GB, 400, 2020, 300 * GB, "NVIDIA A100 data sheet"),
    Device("a100-40", "A100 SXM 40GB", 312e12, 1.555e12, 40 * GB, 400, 2020, 300 * GB, "NVIDIA A100 data sheet"),
    Device(
        "mi300x",
        "Instinct MI300X 192GB",
        1307e12,
        5.3e12,
        192 * GB,
        750,
        2023,
        448 * GB,
        "AMD Instinct MI300X data sheet",
    ),
    Device("l40s", "L40S 48GB", 362e12, 0.864e12, 48 * GB, 350, 2023, 32 * GB, "NVIDIA L40S data sheet"),
    Device("l4", "L4 24GB", 121e12, 0.300e12, 24 * GB, 72, 2023, 32 * GB, "NVIDIA L4 data sheet"),
    Device(
        "rtx-5090",
        "GeForce RTX 5090 32GB",
        209.5e12,
        1.792e12,
        32 * GB,
        575,
        2025,
        64 * GB,
        "NVIDIA Blackwell RTX paper",
    ),
    Device("rtx-4090", "GeForce RTX 4090 24GB", 165.2e12, 1.008e12, 24 * GB, 450, 2022, 32 * GB, "NVIDIA Ada paper"),
    Device("rtx-3090", "GeForce RTX 3090 24GB", 71e12, 0.936e12, 24 * GB, 350, 2020, 32 * GB, "NVIDIA GA102 paper"),
)
GPUS: dict[str, Device] = {device.name: device for device in _GPUS}
"""GPUs by name."""

CORE_FLOPS = 400e9
"""A core with AVX512-BF16 at large products, as measured by ``memtrain bench limit``; others are far slower."""
CORE_BANDWIDTH = 20e9
"""Bytes/s that one core reads from memory, about."""
CORE_WATTS = 15.0
"""A server core's share of its package, about."""

CPU_LINK = 2e9
"""Bytes/s between processes of one machine through its memory, about."""


def this_machine() -> Device:
    """The processor that this runs on; its figures are rough until ``--measure`` puts them right."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        memory = 16 * GB
    source = "rough figures for a core with AVX512-BF16"
    title = f"this machine, {cores} cores"
    return Device(
        "cpu", title, cores * CORE_FLOPS, cores * CORE_BANDWIDTH, memory, cores * CORE_WATTS, 0, CPU_LINK, source
    )


def device(name: str) -> Device:
    """By name. Raises :class:`UserError` for a name that is not known."""
    if name == "cpu":
        return this_machine()
    if name not in GPUS:
        raise UserError(f"no device named {name!r}; choose from {', '.join([*GPUS, 'cpu'])}")
    return GPUS[name]


def largest() -> Device:
    """The named GPU with the most memory."""
    return max(_GPUS, key=lambda gpu: gpu.memory)
