"""Many tasks by many workers, watched: progress, workers that were killed, and one sentence where it does not go on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtrain.corpus.steps import FAILED, WORKERS
from memtrain.errors import UserError

EXECUTORS = ("local", "slurm", "ray")
_POLL = 0.5
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")

Progress = Callable[[str, int, int], None]


@dataclass
class Crew:
    """Who does the work."""

    workers: int
    """Tasks at the same time."""
    executor: str = "local"
    """``local`` (processes here), ``slurm`` or ``ray``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of datatrove's executor."""

    def check(self) -> None:
        """Raise :class:`UserError` for what cannot be started."""
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: give 1 or more")
        if self.executor not in EXECUTORS:
            raise UserError(f"--executor {self.executor!r}: use {', '.join(EXECUTORS)}")
        if importlib.util.find_spec("datatrove") is None:
            raise UserError("--workers needs datatrove: pip install 'memtrain[scale]'")


@dataclass
class Stage:
    """Tasks of one kind, with their folder: completed ones are marked there and not done again."""

    name: str
    """``parse`` or ``draw``."""
    folder: Path
    arguments: dict[str, Any]
    sizes: list[int]
    """How much each task is, in the units of ``what``."""
    what: str
    """What progress is told in."""

    def completed(self) -> set[int]:
        """Numbers of the tasks that are done."""
        with contextlib.suppress(OSError):
            return {int(name) for name in os.listdir(self.folder / "completions")}
        return set()

    def run(self, crew: Crew, progress: Progress) -> None:
        """Do what is not done yet.

        Raises :class:`UserError` where a task fails or a worker is killed: the sentence names the log and the way on.
        """
        before = self.completed()
        if len(before) == len(self.sizes):
            return
        for name in (WORKERS, FAILED):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)
        job = {**self._job(), "workers": crew.workers, "executor": crew.executor, "options": dict(crew.options)}
        path = self.folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        skipped = sum(self.sizes[number] for number in before)
        total = sum(self.sizes) - skipped
        command = [sys.executable, "-m", "memtrain.corpus.launch", str(path)]
        environment = {**_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false", **os.environ}
        killed = ""
        with open(self.folder / "log.txt", "ab") as log:
            launcher = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
            try:
                while launcher.poll() is None and not killed:
                    progress(self.what, min(total, self._done() - skipped), total)
                    time.sleep(_POLL)
                    killed = self._killed(launcher) if crew.executor == "local" else ""
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()
        if len(self.completed()) < len(self.sizes):
            raise UserError(self._why(killed, launcher.returncode))
        progress(self.what, total, total)

    def _job(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "folder": str(self.folder),
            "arguments": self.arguments,
            "tasks": len(self.sizes),
        }

    def _done(self) -> int:
        completed = self.completed()
        done = sum(self.sizes[number] for number in completed)
        for _, number, part in self._working():
            if number not in completed:
                done += min(part, self.sizes[number])
        return done

    def _working(self) -> list[tuple[str, int, int]]:
        """Worker, its task, how much of it is done."""
        found = []
        for path in (self.folder / WORKERS).iterdir():
            with contextlib.suppress(OSError, ValueError):
                number, part = path.read_text().split()
                found.append((path.name, int(number), int(part)))
        return found

    def _killed(self, launcher: subprocess.Popen[bytes]) -> str:
        """Which worker of this machine is gone though there is work left; a pool of processes would wait for it."""
        here = f"{os.uname().nodename}."
        names = [path.name for path in (self.folder / WORKERS).iterdir() if path.name.startswith(here)]
        gone = [name for name in names if not _alive(int(name.removeprefix(here)))]
        if not gone or len(self.completed()) == len(self.sizes):
            return ""
        # A task that failed ends its pool too: then its own sentence counts, and so does an end that is under way.
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(timeout=5)
            return ""
        tasks = [number for name, number, _ in self._working() if name in gone]
        return f"worker process {gone[0].removeprefix(here)}" + (f" (task {tasks[0]})" if tasks else "")

    def _why(self, killed: str, code: int) -> str:
        failures = sorted((self.folder / FAILED).iterdir())
        state = f"{len(self.completed()):,} of {len(self.sizes):,} tasks are done and kept"
        way_on = f"see {self.folder / 'log.txt'}; {state}; go on by the same command: {_command()}"
        if failures:
            number, sentence = failures[0].name, failures[0].read_text(encoding="utf-8")
            return sentence if number == "start" else f"{self.name} task {number}: {sentence}; {way_on}"
        if killed or code < 0:
            who = killed or f"the process of the executor (signal {-code})"
            return f"{who} was killed, by want of memory perhaps (then give fewer --workers); {way_on}"
        return f"the executor ended with status {code} before its work was done; {way_on}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _command() -> str:
    name = Path(sys.argv[0]).name
    return shlex.join(["memtrain" if name == "__main__.py" else name, *sys.argv[1:]])
