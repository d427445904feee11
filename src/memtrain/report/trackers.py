"""Sends metrics to a tracker as well: trackio, Weights & Biases or TensorBoard, each an optional install.

``metrics.jsonl`` in the run's folder is the record; a tracker is a copy for looking at, so one that fails while the run
goes on is dropped with a warning and does not stop the training. One that cannot be started is an error at once.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from memtrain.errors import UserError

Kind = Literal["none", "trackio", "wandb", "tensorboard"]
MODULES: dict[str, str] = {
    "trackio": "trackio",
    "wandb": "wandb",
    "tensorboard": "torch.utils.tensorboard",
}


class Tracker:
    """One tracker, or none. ``log`` and ``close`` never raise."""

    def __init__(self, kind: Kind, project: str, name: str, config: Mapping[str, Any], folder: Path) -> None:
        """Start it. ``config``: the recipe as plain data. ``folder``: the run's, for trackers that write files.

        Raises UserError where the tracker's package is not installed.
        """
        self.kind = kind
        self._handle: Any = None
        if kind == "none":
            return
        try:
            module = importlib.import_module(MODULES[kind])
        except ImportError:
            raise UserError(
                f'log.tracker is "{kind}" but its package is missing; pip install "memtrain[{kind}]" or set it "none"'
            ) from None
        if kind == "tensorboard":
            self._handle = module.SummaryWriter(str(folder / "tensorboard"))
            self._handle.add_text("recipe", str(dict(config)))
        elif kind == "wandb":
            self._handle = module.init(project=project, name=name, config=dict(config), dir=str(folder))
        else:
            module.init(project=project, name=name, config=dict(config))
            self._handle = module

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Send the finite numbers of one step."""
        if self._handle is None:
            return
        numbers = {name: value for name, value in metrics.items() if _is_number(value)}
        try:
            if self.kind == "tensorboard":
                for name, value in numbers.items():
                    self._handle.add_scalar(name, value, step)
            else:
                self._handle.log(numbers, step=step)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Flush and end."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            if self.kind == "tensorboard":
                handle.close()
            else:
                handle.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._handle = None
        warnings.warn(f"the tracker {self.kind} failed and is switched off for this run: {error}", stacklevel=3)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
