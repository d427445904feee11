"""A `memtrain serve` of its own for a measurement: started, asked where it is, stopped, killed, started again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from openai import AsyncOpenAI


class Server:
    """One store, and the server processes that use it one after the other."""

    def __init__(self, arguments: Sequence[str], store: Path, log: Path):
        self.arguments, self.store, self.log = list(arguments), store, log
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def start(self, patience: float = 300.0) -> Server:
        """Start it and wait for its address. Raises RuntimeError with the end of its log where it does not come up."""
        command = [
            sys.executable,
            "-m",
            "memtrain",
            "serve",
            *self.arguments,
            "--port",
            "0",
            "--store",
            str(self.store),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"at (http://\S+)/v1", self.log.read_text(errors="replace"))
            if found:
                self.address = found[1]
                return self
            time.sleep(0.1)
        raise RuntimeError(f"the server did not come up: {self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """As Ctrl-C does: what is under way is finished."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def client(self) -> AsyncOpenAI:
        """The official client, without tries of its own: a failure is to be seen."""
        return AsyncOpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=600)

    def resident_mib(self) -> float:
        """Resident memory."""
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info().rss / 2**20
