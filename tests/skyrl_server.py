"""A real Tinker-API server for tests: SkyRL on the CPU, in an environment of its own, on a free loopback port.

SkyRL needs Python 3.12 and pins of its own, so it is no dependency of ours: ``make test-tinker`` makes the environment,
and ``MEMTRAIN_SKYRL_VENV`` names it (default: ``.venv/skyrl`` in the repository).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
MICRO_BATCH = 4
"""Rows that SkyRL computes at once; it compiles for every other number of rows too."""
BACKEND: dict[str, Any] = {
    "max_lora_adapters": 4,
    "max_lora_rank": 8,
    "train_micro_batch_size": MICRO_BATCH,
    "sample_max_num_sequences": 16,
}


def environment() -> Path:
    """The environment that SkyRL is installed in; skips the test where there is none."""
    folder = Path(os.environ.get("MEMTRAIN_SKYRL_VENV") or ROOT / ".venv" / "skyrl")
    if not (folder / "bin" / "uv").exists() or not list(folder.glob("lib/python3*/site-packages/skyrl")):
        pytest.skip(f"no SkyRL in {folder}: make test-tinker installs it, MEMTRAIN_SKYRL_VENV names another place")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SkyRL:
    """A server over one model; it can be killed, and started again on the same port with what it had saved."""

    def __init__(self, model: Path, folder: Path, **backend: Any) -> None:
        self.model, self.folder, self.backend = model, folder, {**BACKEND, **backend}
        self.environment, self.port = environment(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 180) -> SkyRL:
        """Start it and wait until it answers (the model is still being loaded then: requests wait)."""
        command = [str(self.environment / "bin" / "uv"), "run", "--active", "--no-project", "-m", "skyrl.tinker.api"]
        command += ["--base-model", str(self.model), "--backend", "jax", "--backend-config", json.dumps(self.backend)]
        command += ["--checkpoints-base", str(self.folder / "checkpoints")]
        command += ["--database-url", f"sqlite:///{self.folder / 'tinker.db'}"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        path = f"{self.environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        own = {"VIRTUAL_ENV": str(self.environment), "PATH": path, "JAX_PLATFORMS": "cpu", "UV_OFFLINE": "1"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + timeout
        while not self.answers():
            assert self.process.poll() is None, f"SkyRL ended: {self.log()[-2000:]}"
            assert time.monotonic() < until, f"SkyRL did not start: {self.log()[-2000:]}"
            time.sleep(0.2)
        return self

    def answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/api/v1/healthz", timeout=2):
            return True
        return False

    def kill(self) -> None:
        """kill -9 of the server and of everything it started."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            for process in [*family, psutil.Process(self.process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.process = None

    def log(self) -> str:
        return (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def running(model: Path, **backend: Any) -> Iterator[SkyRL]:
    """A server over a model's folder, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="memtrain-skyrl-"))
    server = SkyRL(model, folder, **backend)
    try:
        yield server.start()
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
