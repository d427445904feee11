"""Starting vLLM inside this process and leaving the process as it was."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator

import numpy as np
import torch

TRIPS_OVER = ("llvmlite.binding.ffi",)
"""vLLM 0.32 on a CPU looks through the namespaces of all loaded modules, and stops at an object of these whose
``__dict__`` is none. numba loads llvmlite, and bm25s loads numba where it is installed."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """vLLM seeds every global generator, puts a library into LD_PRELOAD for its workers and, on a CPU, switches
    ``torch.set_num_threads`` off. Whoever else computes in the same process keeps its own."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its core in this process too
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    set_threads, threads, grad = torch.set_num_threads, torch.get_num_threads(), torch.is_grad_enabled()
    preload = os.environ.get("LD_PRELOAD")
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    hidden = {name: sys.modules.pop(name) for name in TRIPS_OVER if name in sys.modules}
    try:
        yield
    finally:
        sys.modules.update(hidden)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
