"""One of torchrun's processes: two updates on its share of the rows; rank 0 writes the weights and what was reported.

Run by test_process_group.py: ``torchrun --nproc-per-node N update_worker.py FOLDER MODEL KIND``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.engines.torch.process_group import ProcessGroup
from memtrain.engines.workers import ALONE, Workers, share
from memtrain.types import Row

KINDS: dict[str, tuple[dict[str, Any], LossConfig]] = {
    "full, conversations": ({}, LossConfig(kl_coef=0.1, cross_entropy_coef=0.5)),
    "full, tokens": ({}, LossConfig(kl_coef=0.0, cross_entropy_coef=0.5, normaliser="tokens")),
    "lora": ({"lora_rank": 4}, LossConfig(kl_coef=0.1, cross_entropy_coef=0.5)),
    "fewer documents than workers": ({}, LossConfig(kl_coef=0.1)),
}
COUNTS_BY_BATCH = {"update_seconds", "tokens_packed"}


class Told:
    """The workers, and the gradient that they were asked to add up."""

    def __init__(self, workers: Workers) -> None:
        self.workers, self.rank, self.size, self.gather = workers, workers.rank, workers.size, workers.gather
        self.gradient = torch.empty(0)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        parameters = list(parameters)
        self.workers.add_gradients(parameters)
        self.gradient = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])


def updates(model: Path, kind: str, workers: Workers = ALONE) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Weights after each of two updates and their gradients, and the metrics."""
    options, loss = KINDS[kind]
    told = Told(workers)
    engine = tiny.engine(model, **options, workers=told, micro_batch_tokens=256)
    weights, metrics = {}, []
    for number in range(2):
        if kind == "fewer documents than workers":
            documents: list[list[Row]] = [tiny.joint_rows(number)]
        else:
            documents = [tiny.joint_rows(10 * number + document) for document in range(5)]
        rows = [row for document in share(workers, documents) for row in document]
        found = tiny.run(engine.update(rows, loss, OptimiserConfig(lr=1e-2)))
        metrics.append({key: value for key, value in found.items() if key not in COUNTS_BY_BATCH})
        for name, parameter in engine.loaded.model.named_parameters():
            weights[f"{number}/{name}"] = parameter.detach().clone()
        weights[f"{number}/gradient"] = told.gradient
    return weights, metrics


def main(folder: Path, model: Path, kind: str) -> None:
    """All workers must end with the same weights, bit by bit."""
    dist.init_process_group("gloo")
    workers = ProcessGroup()
    weights, metrics = updates(model, kind, workers)
    sums = workers.gather([float(tensor.double().abs().sum()) for tensor in weights.values()])
    assert all(theirs == sums[0] for theirs in sums), "workers drifted apart"
    assert workers.gather(metrics) == [metrics] * workers.size
    if workers.rank == 0:
        save_file(weights, folder / "weights.safetensors")
        (folder / "metrics.json").write_text(json.dumps(metrics))
    workers.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
