"""Data-parallel workers over ``torch.distributed``: whoever started the process group (Ray Train, torchrun) owns it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from memtrain.engines.workers import BUCKET_BYTES

PATIENCE = timedelta(hours=12)
"""How long a worker waits for another that works; one that has died is noticed at once, by its closed connection."""


class ProcessGroup:
    """:class:`memtrain.engines.workers.Workers` of the default process group."""

    def __init__(self) -> None:
        """Raises RuntimeError where no process group was started."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # NCCL moves tensors of a GPU only; counts and sentences go over the network of the processors.
        self._objects: Any = dist.new_group(backend="gloo", timeout=PATIENCE)

    def gather(self, value: Any) -> list[Any]:
        """See :meth:`memtrain.engines.workers.Workers.gather`."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._objects)
        return found

    def close(self) -> None:
        """End what was started here. A group that is left to the interpreter's exit may abort the process there."""
        with contextlib.suppress(ValueError):  # vLLM's end takes all groups along
            dist.destroy_process_group(self._objects)
        self._objects = None

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """See :meth:`memtrain.engines.workers.Workers.add_gradients`.

        One all-reduce a bucket of up to 64 MiB, after the last micro-batch: workers have different numbers of them,
        so reducing during the backward pass (DistributedDataParallel) would wait for a partner that is not there.
        """
        if self.size == 1:
            return
        for bucket in buckets(parameters):
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [p.grad for p in bucket if p.grad is not None]
            if len(gradients) == 1:  # a large one: no copy
                dist.all_reduce(gradients[0])
                continue
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))


def buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Consecutive parameters of one type and device, up to ``BUCKET_BYTES`` together (a larger one by itself)."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        bytes_ = parameter.numel() * parameter.element_size()
        other = bucket and (parameter.dtype, parameter.device) != (bucket[0].dtype, bucket[0].device)
        if bucket and (other or size + bytes_ > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += bytes_
    if bucket:
        yield bucket
