"""Runs the tasks of a stage through one of datatrove's executors: ``python -m memtrain.corpus.launch JOB``.

It is a process of its own, so that its workers can be ended together, and it ends itself and them when the process that
started it is gone, so that a killed build leaves nothing running.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from memtrain.corpus import steps
from memtrain.errors import UserError

STEPS = {"parse": steps.ParseStep, "draw": steps.DrawStep}
_SLURM_POLL = 20.0


def main(path: str) -> int:
    """Run the job in the JSON file ``path``; 0 where all its tasks are done."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    folder = Path(job["folder"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        executor = make_executor(job)
    except UserError as error:
        steps.tell_failure(folder, "start", str(error))
        return 2
    executor.run()
    if job["executor"] == "slurm":
        _wait_for_slurm(executor)
    return 0 if not executor.get_incomplete_ranks() else 1


def _end_with_parent() -> None:
    # Ends when the other end of the pipe is gone. Not by sys.stdin, whose lock a forked process would wait for.
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def make_executor(job: dict[str, Any]) -> Any:
    """datatrove's executor for a job. Raises :class:`UserError` for a missing library or an option it does not have."""
    kind, options = job["executor"], dict(job["options"])
    step = STEPS[job["step"]](job["folder"], job["arguments"])
    if kind == "ray":
        _start_ray(options.pop("address", None))
    made = _executor_class(kind)
    known = set(inspect.signature(made.__init__).parameters) - {"self", "pipeline", "tasks", "logging_dir", "depends"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(f"--executor {kind} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
    missing = [name for name in ("time", "partition") if kind == "slurm" and name not in options]
    if missing:
        raise UserError(f"--executor slurm needs the option {missing[0]!r}: --executor-option {missing[0]}=VALUE")
    shared = {"workers": job["workers"], "logging_dir": job["folder"]}
    return made([step], tasks=job["tasks"], **{**shared, **options})


def _executor_class(kind: str) -> Any:
    try:
        if kind == "slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor

            return SlurmPipelineExecutor
        if kind == "ray":
            from datatrove.executor.ray import RayPipelineExecutor

            return RayPipelineExecutor
        from datatrove.executor.local import LocalPipelineExecutor

        return LocalPipelineExecutor
    except ImportError as error:
        raise UserError(f"--workers needs datatrove ({error}): pip install 'memtrain[scale]'") from None


def _start_ray(address: str | None) -> None:
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--executor ray needs Ray ({error}): pip install 'memtrain[ray]'") from None
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--executor ray: no cluster at {address} ({error}); start one, or leave it out") from None


def _wait_for_slurm(executor: Any) -> None:
    """Until all tasks are done or the queue knows the job no more (its last array, where there are several)."""
    unknown = 0
    while executor.get_incomplete_ranks() and unknown < 3:
        time.sleep(_SLURM_POLL)
        queue = subprocess.run(["squeue", "-h", "-j", str(executor.job_id)], capture_output=True, text=True)
        unknown = 0 if queue.stdout.strip() else unknown + 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
