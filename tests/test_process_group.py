"""Several processes compute the update that one computes: the real torch.distributed, gloo, float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from update_worker import KINDS, updates

from memtrain.engines.torch.process_group import BUCKET_BYTES, buckets

RELATIVE_ERROR = 1e-5
"""Of the gradient that the optimiser gets, in float32: ||theirs - alone|| / ||alone||."""
WEIGHTS_ERROR = 1e-4
"""Of what AdamW makes of it: its first steps divide each entry by its own size, so rounding of tiny ones grows."""


def torchrun(processes: int, *command: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*run, *command], capture_output=True, text=True, timeout=120, env=environment, cwd=here)


@pytest.mark.parametrize(
    ("kind", "processes"),
    [("full, conversations", 2), ("full, tokens", 4), ("lora", 2), ("fewer documents than workers", 2)],
)
def test_workers_compute_the_update_of_one(kind: str, processes: int, tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", spread=0.05)  # about what real weights are
    done = torchrun(processes, "update_worker.py", str(tmp_path), str(model), kind)
    assert done.returncode == 0, done.stderr
    theirs = load_file(tmp_path / "weights.safetensors")
    alone, metrics = updates(model, kind)
    start = {name: p.detach() for name, p in tiny.engine(model, **KINDS[kind][0]).loaded.model.named_parameters()}
    assert theirs.keys() == alone.keys()
    for number in ("0/", "1/"):
        gradient = alone.pop(f"{number}gradient").double()
        apart = float((theirs[f"{number}gradient"] - gradient).norm() / gradient.norm())
        assert apart < RELATIVE_ERROR
        names = [name for name in alone if name.startswith(number)]
        off = sum(float((theirs[name] - alone[name]).double().square().sum()) for name in names) ** 0.5
        moved = sum(float((start[name[2:]] - alone[name]).double().square().sum()) for name in names) ** 0.5
        assert moved > 0
        assert off / moved < WEIGHTS_ERROR
    for whole, shared in zip(metrics, json.loads((tmp_path / "metrics.json").read_text()), strict=True):
        assert shared == pytest.approx(whole, rel=1e-4, abs=1e-6)
        assert shared["rows"] == whole["rows"]


def test_a_mistake_of_one_worker_ends_all(tmp_path: Path) -> None:
    """Without it the other would wait for hours."""
    script = tmp_path / "mistake.py"
    script.write_text(
        "import asyncio, torch.distributed as dist\n"
        "from memtrain.engines.torch.process_group import ProcessGroup\n"
        "from memtrain.engines.workers import Agreed, together\n"
        "from memtrain.errors import UserError\n"
        "dist.init_process_group('gloo')\n"
        "workers = ProcessGroup()\n"
        "async def work():\n"
        "    if workers.rank == 1: raise UserError('only here')\n"
        "    return 7\n"
        "try: asyncio.run(together(workers, work()))\n"
        "except Agreed as error: print(f'told: {error}\\n', end='', flush=True)\n"
        "workers.close()\n"
        "dist.destroy_process_group()\n"
    )
    done = torchrun(2, str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("told: only here") == 2


def test_buckets_hold_everything_once_in_order() -> None:
    sizes = [3, BUCKET_BYTES // 4, 5, 7, BUCKET_BYTES // 8, BUCKET_BYTES // 8 - 8, 2]
    parameters = [torch.nn.Parameter(torch.empty(size, device="meta")) for size in sizes]
    parameters.append(torch.nn.Parameter(torch.empty(4, dtype=torch.float64, device="meta")))
    found = list(buckets(parameters))
    assert [id(p) for bucket in found for p in bucket] == [id(p) for p in parameters]
    for bucket in found:
        assert len({p.dtype for p in bucket}) == 1
        assert len(bucket) == 1 or sum(p.numel() * p.element_size() for p in bucket) <= BUCKET_BYTES
    assert list(buckets([])) == []
