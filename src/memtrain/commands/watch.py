"""``memtrain watch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg


def watch(
    run: Annotated[
        Positional[str],
        arg(
            metavar="RUN", help="Folder of a run, also one that is still to start; or the URL given to train as --out."
        ),
    ],
    once: Annotated[
        FlagCreatePairsOff[bool], arg(help="Print one picture and end; so it is, too, where the output is no terminal.")
    ] = False,
    every: Annotated[float, arg(metavar="SECONDS", help="Between two looks at the folder.")] = 1.0,
) -> None:
    """Follow a run that another process trains: progress, time left, curves, newest evaluation, newest memory.

    Only looks: it may be started, ended (Ctrl-C) and started again at any time. Ends when the run is finished.

    Example: memtrain watch runs/demo

    Example: memtrain watch runs/demo --once > progress.txt
    """
    from memtrain.launch import storage
    from memtrain.report.watch import watch as follow

    follow(storage.working_folder(run, 0) if storage.is_url(run) else Path(run), once, every)
