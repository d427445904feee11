"""Decoding steps as CUDA graphs: a step of a small model is hundreds of tiny kernels, and launching them one by one
takes longer than running them. On a CPU, or where a model cannot be captured, a step simply runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable

import torch


class StepGraphs:
    """Runs a step that reads and writes the same tensors every time; one graph for each key."""

    def __init__(self, device: torch.device):
        """Graphs are used on CUDA devices only."""
        self.device = device
        self._works = device.type == "cuda"
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def forget(self) -> None:
        """The tensors are others from now on."""
        self._seen.clear()
        self._graphs.clear()

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """The first run of a key warms its kernels up, the second captures them, all later ones replay."""
        if self._works and key in self._seen and key not in self._graphs:
            self._capture(key, step)
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            self._seen.add(key)
            step()

    def _capture(self, key: Hashable, step: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Capturing only records: what the step would have changed, it changes when the graph is replayed.
            with torch.cuda.graph(graph):
                step()
        except RuntimeError as error:
            self._works = False
            reason = str(error).splitlines()[0]
            warnings.warn(f"decoding without CUDA graphs, this model cannot be captured: {reason}", stacklevel=2)
            return
        self._graphs[key] = graph
