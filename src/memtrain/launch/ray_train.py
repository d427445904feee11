"""Workers that Ray Train places, starts and, when one dies, starts again.

Ray owns processes, placement, the process group and restarts; what a worker does is ``pipeline.train_in``, as under
torchrun. A restarted group goes on from the last checkpoint in the run's folder.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memtrain.engines.workers import Agreed
from memtrain.errors import UserError, first_line
from memtrain.launch.screens import SentScreen, SilentScreen, show
from memtrain.launch.storage import is_url, run_folder
from memtrain.pipeline import print_summary
from memtrain.recipe import Recipe, parse_recipe
from memtrain.report.console import Screen

POLL_SECONDS = 0.2
CONNECT_SECONDS = 10.0
GRACE_SECONDS = 10.0
"""How long workers may take to end after one of them has told what went wrong."""


@dataclass(frozen=True)
class Job:
    """What every worker is told; plain data."""

    recipe: dict[str, Any]
    out: str
    resume: bool
    launch: str
    """Tells a restart of this launch from another run in the same folder."""
    on_gpu: bool


def train(recipe: Recipe, out: str, resume: bool, workers: int, address: str | None, restarts: int) -> None:
    """Train with ``workers`` workers on the Ray cluster at ``address`` (None: one of this machine's own).

    Raises :class:`UserError` where Ray is not installed or not reached, where the cluster has too few processors or
    GPUs, where workers died more than ``restarts`` times, and what ``pipeline.train`` raises.
    """
    ray = _ray()
    out = out if is_url(out) else str(Path(out).absolute())
    with _cluster(ray, workers, address) as resources:
        on_gpu = recipe.model.device.startswith("cuda") or (recipe.model.device == "auto" and "GPU" in resources)
        have = int(resources.get("GPU" if on_gpu else "CPU", 0))
        if workers > have:
            raise UserError(
                f"--workers {workers} but the Ray cluster has {have} {'GPUs' if on_gpu else 'processors'}; "
                "lower it or add machines"
            )
        job = Job(recipe.model_dump(mode="json"), out, resume, uuid.uuid4().hex, on_gpu)
        with Screen(f"memtrain {recipe.name} → {out} ({workers} workers)") as screen:
            _run(ray, job, workers, restarts, screen)
    folder = run_folder(out).path
    if (folder / "summary.json").exists():  # a cluster's disk need not be this machine's
        print_summary(folder)


def _run(ray: Any, job: Job, workers: int, restarts: int, screen: Screen) -> None:
    """Fit in a task of the cluster, so that it works from outside (``ray://``) too, and show what rank 0 tells."""
    from ray.util.queue import Queue

    queue = Queue(actor_options={"num_cpus": 0})
    told: list[str] = []

    def drain() -> None:
        for kind, arguments in queue.get_nowait_batch(queue.qsize()):
            if kind == "mistake":
                told.append(*arguments)
            else:
                show(screen, kind, arguments)

    fitting = ray.remote(num_cpus=0, max_retries=0)(_fit).remote(job, workers, restarts, queue)
    screen.stage(f"starting {workers} workers", 0)
    waited = 0.0
    try:
        while not ray.wait([fitting], timeout=POLL_SECONDS)[0]:
            drain()
            waited += POLL_SECONDS if told else 0.0
            if waited > GRACE_SECONDS:
                ray.cancel(fitting, force=True)
                break
        drain()
        if told:
            raise UserError(told[0])
        failure = ray.get(fitting)
    except ray.exceptions.RayError as error:
        failure = f"{type(error).__name__}: {first_line(error)}"
    if failure:
        raise UserError(
            f"workers died more than {restarts} times, last with {failure}; Ray's logs (/tmp/ray/session_latest/logs) "
            "say more; go on with --resume"
        )


def _fit(job: Job, workers: int, restarts: int, queue: Any) -> str | None:
    """Run Ray Train; returns what it failed with, as one line."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from memtrain.engines.torch.process_group import PATIENCE

    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": asdict(job), "queue": queue},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=job.on_gpu),
        torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        run_config=RunConfig(
            name=f"memtrain-{job.launch[:8]}",
            storage_path=None if is_url(job.out) else f"{job.out}/.ray",
            failure_config=FailureConfig(max_failures=restarts),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        cause = getattr(error, "worker_failures", None)
        return first_line(next(iter(cause.values())) if cause else error)
    return None


def _work(config: dict[str, Any]) -> None:
    """One worker, in a process of Ray's."""
    from memtrain.engines.torch.process_group import ProcessGroup
    from memtrain.pipeline import train_in

    job, queue = Job(**config["job"]), config["queue"]
    recipe = parse_recipe(job.recipe, "the recipe")
    workers = ProcessGroup()
    if job.on_gpu:
        from ray.train.torch import get_device

        recipe = recipe.with_model(device=str(get_device()))
    try:
        run = run_folder(job.out, workers)
        run.launch = job.launch
        screen = SentScreen(lambda name, given: queue.put((name, given))) if workers.rank == 0 else SilentScreen()
        with screen:
            train_in(run, recipe, job.resume, screen, workers)
    except Agreed as mistake:  # a restart would meet it again
        if workers.rank == 0:
            queue.put(("mistake", (str(mistake),)))
    except UserError as mistake:
        queue.put(("mistake", (str(mistake),)))
        raise


@contextlib.contextmanager
def _cluster(ray: Any, workers: int, address: str | None) -> Iterator[dict[str, float]]:
    """A connection; yields what the cluster has. A cluster of this machine's own ends with it."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if address is None:
            processors = max(workers, os.cpu_count() or 1)
            ray.init("local", num_cpus=processors, include_dashboard=False, **options)
        else:
            _knock(address)
            ray.init(address, **options)
    except Exception as error:
        where = address or "this machine"
        raise UserError(
            f"Ray on {where} cannot be reached ({first_line(error)}); start it (ray start --head), mend --address, or, "
            "where the cluster asks for a token, set RAY_AUTH_MODE=token"
        ) from None
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray tries an address that nobody answers for minutes. Raises OSError at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _ray() -> Any:
    try:
        import ray
        import ray.train
    except ImportError as error:
        raise UserError(
            f'--workers needs Ray ({first_line(error)}); pip install "memtrain[ray]", or start it with torchrun'
        ) from None
    return ray
