"""``memtrain report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def report(
    runs: Annotated[
        Positional[list[Path]],
        arg(
            metavar="RUN [RUN ...]", help="Folders of runs (train, demo, task), or of a comparison. May be unfinished."
        ),
    ],
    out: Annotated[
        Path | None, arg(metavar="FILE", help="Where the page goes. Default: report.html in the first run's folder.")
    ] = None,
) -> None:
    """Write one HTML file about runs: curves, before and after, and every memory as it changed. Needs no network.

    Several runs are drawn over each other, with their differences and the settings in which they differ.

    Example: memtrain report runs/demo

    Example: memtrain report runs/a runs/b --out comparison.html
    """
    from memtrain.report.html.page import write_report

    target = out or (runs[0] / "report.html" if runs else Path("report.html"))
    print(write_report(runs, target))
