"""The one screen of a run: progress with the time left, the last metrics, one memory to read.

On a terminal it is a live picture; anywhere else (a log file, CI) it prints one plain line a step, and one every few
seconds while something long is under way. It is a spectator: nothing that goes wrong in here stops a training.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Task as Bar
from rich.table import Table
from rich.text import Text

P = ParamSpec("P")

QUIET_SECONDS = 10.0
"""Without a terminal: the pause between two lines about the same work."""
REFRESH_PER_SECOND = 4
SAMPLE_LINES = 12
SAMPLE_CHARS = 1500
METRIC_ROWS = 8
WIDE = 260
"""Columns of the result table where nobody's terminal sets them."""

SHOWN = {
    "reward": "reward",
    "recall_reward": "recall reward",
    "entities_kept": "entities kept",
    "kl": "KL",
    "cross_entropy": "cross-entropy",
    "grad_norm": "grad norm",
    "dropped_groups": "dropped groups",
    "memory_tokens": "memory tokens",
    "tokens_per_second": "tokens/s",
}
"""Columns of the metrics table: key and title; what a step does not report is left out."""


def print_grid(rows: Sequence[Sequence[str]], titles: Sequence[str], lead: int, width: int) -> None:
    """Rows, the first of them the head, as a table where there is room for one, else a line a cell after the first
    ``lead``: below each row's own title, the head's words in a column of ``width``."""
    head, *body = rows
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    grid = Table(*head)
    for row in body:
        grid.add_row(*row)
    if Console(width=WIDE).measure(grid).maximum <= console.width:
        console.print(grid)
        return
    for title, row in zip(titles, body, strict=True):
        console.print(Text(title, style="bold"))
        for name, value in zip(head[lead:], row[lead:], strict=True):
            console.print(Text(f"  {name:{width}} {value}"))


def duration(seconds: float | None) -> str:
    """``75`` -> ``1:15``; ``None`` or a nonsense number -> ``-``."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "-"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def number(value: Any) -> str:
    """Three significant digits for a fraction, separators for a count; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def columns_of(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The shown metrics of one step as ``{title: text}``."""
    return {title: number(metrics[key]) for key, title in SHOWN.items() if metrics.get(key) is not None}


class QuietConsole(Console):
    """Where the reader of a pipe has gone, fall silent; rich itself would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Clock:
    """Time left of a counted job, from the mean pace so far."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.total, self.done = now, total, 0
        self.start = now()

    def eta(self) -> float | None:
        """Seconds left; None before the first finished unit."""
        if not self.done or self.total <= 0:
            return None
        return (self.now() - self.start) / self.done * max(self.total - self.done, 0)

    def text(self) -> str:
        """``3/10, 0:12 so far, 0:28 left``; without a known total only what is done."""
        if self.total <= 0:
            return f"{self.done}, {duration(self.now() - self.start)} so far"
        return f"{self.done}/{self.total}, {duration(self.now() - self.start)} so far, {duration(self.eta())} left"


class _TimeLeft(ProgressColumn):
    """Time left by the mean pace since the start: steadier than rich's own over steps of minutes."""

    max_refresh = 0.5

    def render(self, task: Bar) -> Text:
        clock: Clock | None = task.fields.get("clock")
        return Text(f"{duration(clock.eta()) if clock else '-'} left", style="cyan")


def _spectator(method: Callable[P, None]) -> Callable[P, None]:
    """Swallow every error of a drawing method: a broken pipe or an odd terminal must not end a training."""

    @functools.wraps(method)
    def safe(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception:
            screen: Any = args[0]
            screen.broken += 1

    return safe


class Screen:
    """Context manager; all methods may be called in any order, also outside of the context (then they print nothing).

    ``screen.stage("grpo", 20)`` begins a stage of 20 steps, ``advance()`` finishes one of them, ``inner`` is a
    :data:`memtrain.engines.base.ProgressCallback` for what happens inside a step, ``metrics`` shows what a step
    gave, ``sample`` one memory, ``note`` prints a lasting line.
    """

    def __init__(self, title: str = "memtrain", console: Console | None = None, live: bool | None = None) -> None:
        """``console``: where to draw, standard error by default (standard output stays for results). ``live``:
        draw a picture or print lines; default by whether the console is a terminal."""
        self.title = title
        self.console = console or QuietConsole(stderr=True, soft_wrap=not sys.stderr.isatty())
        self.is_live = self.console.is_terminal if live is None else live
        self.broken = 0
        self._name = ""
        self._clock: Clock | None = None
        self._inner_clocks: dict[str, Clock] = {}
        self._last_line = -math.inf
        self._rows: list[tuple[str, dict[str, str]]] = []
        self._sample: tuple[str, float | None] | None = None
        self._live: Live | None = None
        self._open = False
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _TimeLeft(),
            expand=True,
            console=self.console,
        )
        self._outer: Any = None
        self._inner_bar: Any = None
        self._inner_name = ""

    def __enter__(self) -> Screen:
        self._open = True
        self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        self._open = False

    @_spectator
    def stage(self, name: str, total: int) -> None:
        """A new stage of ``total`` steps; the one before counts as over."""
        self._name, self._clock = name, Clock(total)
        self._inner_clocks.clear()
        self._last_line = -math.inf
        if self.is_live:
            for bar in self._bars.task_ids:
                self._bars.remove_task(bar)
            self._outer = self._bars.add_task(f"[bold]{name}[/]", total=total or None, clock=self._clock)
            self._inner_bar = None
            self._draw()
        else:
            self._line(f"{name}: starts, {total} to do" if total else f"{name}: starts")

    @_spectator
    def advance(self, n: int = 1) -> None:
        """``n`` steps of the stage are done."""
        if self._clock is None:
            return
        self._clock.done += n
        if self.is_live:
            self._bars.update(self._outer, completed=self._clock.done)
            self._draw()
        elif self._due() or self._clock.done >= self._clock.total:
            self._line(f"{self._name} {self._clock.text()}")

    @_spectator
    def inner(self, what: str, done: int, total: int) -> None:
        """Progress inside a step, in the worker's own units."""
        clock = self._inner_clocks.get(what)
        if clock is None or done < clock.done or total != clock.total:
            clock = self._inner_clocks[what] = Clock(total)
        clock.done = done
        if self.is_live:
            shown: dict[str, Any] = {"description": f"  {what}", "total": total or None, "clock": clock}
            if self._inner_bar is None:
                self._inner_bar = self._bars.add_task(completed=done, **shown)
            elif what != self._inner_name:
                self._bars.reset(self._inner_bar, completed=done, **shown)
            self._bars.update(self._inner_bar, completed=done, **shown)
            self._inner_name = what
            self._draw()
        elif self._due():
            where = f"{self._place()}: " if self._clock else ""
            self._line(f"{where}{what} {clock.text()}")

    @_spectator
    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """What a step gave."""
        columns = columns_of(values)
        if self.is_live:
            self._rows = [*self._rows, (f"{self._name} {step}".strip(), columns)][-METRIC_ROWS:]
            self._draw()
        else:
            left = f" ({duration(self._clock.eta())} left)" if self._clock else ""
            listed = ", ".join(f"{title} {text}" for title, text in columns.items())
            self._line(f"{self._name or 'step'} step {step}{left}: {listed}")

    @_spectator
    def sample(self, text: str, reward: float | None = None) -> None:
        """The newest memory, shown until the next one comes (on a terminal only)."""
        self._sample = (text, reward)
        self._draw()

    @_spectator
    def note(self, text: str) -> None:
        """A line that stays."""
        if self.is_live:
            self.console.print(Text(text))
        else:
            self._line(text)

    @_spectator
    def _start(self) -> None:
        if self.is_live:
            self._live = Live(
                self._picture(), console=self.console, refresh_per_second=REFRESH_PER_SECOND, redirect_stdout=True
            )
            self._live.start()

    @_spectator
    def _stop(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.update(self._picture())
            live.stop()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._picture())

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = [self._bars]
        if self._rows:
            parts.append(self._metrics_table())
        if self._sample:
            text, reward = self._sample
            lines = text[:SAMPLE_CHARS].splitlines()[:SAMPLE_LINES]
            title = "newest memory" if reward is None else f"newest memory, reward {number(reward)}"
            parts.append(
                Panel(Text("\n".join(lines) or "(empty)"), title=title, title_align="left", border_style="dim")
            )
        return Panel(Group(*parts), title=self.title, title_align="left")

    def _metrics_table(self) -> Table:
        titles = [title for title in SHOWN.values() if any(title in columns for _, columns in self._rows)]
        table = Table(box=None, expand=True, header_style="dim")
        table.add_column("step", justify="right")
        for title in titles:
            table.add_column(title, justify="right")
        for step, columns in self._rows:
            table.add_row(step, *(columns.get(title, "-") for title in titles))
        return table

    def _place(self) -> str:
        clock = self._clock
        return f"{self._name} {clock.done}/{clock.total}" if clock and clock.total > 0 else self._name

    def _due(self) -> bool:
        return time.monotonic() - self._last_line >= QUIET_SECONDS

    def _line(self, text: str) -> None:
        if self._open:
            self._last_line = time.monotonic()
            self.console.print(Text(text), soft_wrap=True)
