"""``memtrain watch``: a run that another process trains, as one screen that keeps up with it.

What it shows is :class:`memtrain.report.follow.Look`; this file only draws.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from memtrain.errors import UserError
from memtrain.evaluation.statistics import Estimate
from memtrain.report.console import QuietConsole, duration, number
from memtrain.report.follow import Evaluation, Follower, Look, Sample, Stage
from memtrain.report.html.diff import ADDED, KEPT, Op, diff
from memtrain.report.summary import cell, short

BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#%"
CURVES: Mapping[str, str] = {
    "reward": "reward",
    "recall_reward": "recall reward",
    "entities_kept": "entities kept",
    "cross_entropy": "cross-entropy",
    "kl": "KL to start",
    "sampler_kl": "KL to sampler",
    "memory_tokens": "memory tokens",
    "dropped_groups": "dropped groups",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
}
"""Keys of ``metrics.jsonl`` that get a curve, and their titles; what is zero at every step gets none."""
PRIMING = ("cross_entropy", "grad_norm", "tokens_per_second")
"""What says something of a priming step."""
TITLES = {
    "recall_likelihood_gain": "recall gain, nats",
    "recall_f1": "recall F1",
    "entities_kept": "entities kept",
    "reconstruction_likelihood_gain": "reconstruction gain, nats",
    "truncated": "memories cut",
}
"""Metrics of the newest evaluation that are shown; shorter titles than the report's."""
SAMPLE_CHARS = 1500
QUIET_LEAST, QUIET_STEPS, QUIET_UNKNOWN = 120.0, 5, 900.0
"""No sign for so many seconds, and for so many steps, is worth a warning; where no pace is known, for so many."""
WIDE, ROOMY = 60, 90
"""Columns from which a bar stands beside its numbers, and from which means show their intervals."""


def watch(folder: Path, once: bool = False, every: float = 1.0, console: Console | None = None) -> None:
    """Draw the run in ``folder`` until it is finished; one picture where ``once``, or where nobody's terminal is.

    Raises :class:`UserError` where there is no run to draw one picture of, and for a pause below 0.1 s.
    """
    if not 0.1 <= every <= 3600:
        raise UserError(f"--every is {every:g}: it must lie between 0.1 and 3600 seconds")
    console = console or QuietConsole()
    if console.options.ascii_only and isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="replace")  # a memory may hold any letter
    follower = Follower(folder)
    look = follower.look()
    if once or not console.is_terminal:
        if look.state in ("missing", "empty"):
            raise UserError(f"{folder} {NO_RUN[look.state]}; give the folder of a run (train's --out)")
        console.print(picture(look, console))
        return
    live = Live(picture(look, console), console=console, auto_refresh=False, vertical_overflow="crop")
    with contextlib.suppress(KeyboardInterrupt), live:  # Ctrl-C is how one stops looking
        while look.state != "finished":
            time.sleep(every)
            look = follower.look()
            live.update(picture(look, console), refresh=True)


NO_RUN = {"missing": "is not there", "empty": "holds no run (no recipe.json)"}


def picture(look: Look, console: Console) -> RenderableType:
    """All of it, no higher than the terminal where there is one."""
    plain = console.options.ascii_only
    inside = max(20, console.width - 4)
    title = Text(f"memtrain watch {look.folder}")
    if look.state in NO_RUN:
        waits = Text(f"{look.folder} {NO_RUN[look.state]} yet: waiting for a run to start (Ctrl-C ends)")
        return Panel(waits, title=title, title_align="left")
    parts: list[RenderableType] = [header(look), stages_line(look, inside, plain)]
    if (stage := look.stage) is not None:
        parts.append(progress(look, stage, inside))
    parts += [Text.assemble(("! ", "bold"), (warning, "bold yellow")) for warning in warnings(look)]
    parts += [Text(""), curves(look, inside, plain)] if look.rows else []
    if look.evaluation is not None:
        parts += [Text(""), evaluation_table(look.evaluation, inside)]
    if look.sample is not None:
        height = sum(len(console.render_lines(part, console.options.update(width=inside))) for part in parts)
        room = console.height - height - 5 if console.is_terminal else 12
        if room >= 1:
            parts += [Text(""), sample_text(look.sample, console, inside, room)]
    return Panel(Group(*parts), title=title, title_align="left")


def header(look: Look) -> Text:
    """Recipe, model and state, the last sign of life."""
    name, model = look.recipe.get("name", ""), look.recipe.get("model", {})
    about = ", ".join(str(word) for word in (name, model.get("name") if isinstance(model, dict) else "") if word)
    style = {"running": "bold green", "finished": "bold cyan", "stopped": "bold yellow"}.get(look.state, "bold")
    text = Text.assemble(about, ": " if about else "", (look.state, style))
    if look.state != "finished" and look.quiet is not None:
        text.append(f", last sign {duration(look.quiet)} ago")
    return text


def stages_line(look: Look, width: int, plain: bool) -> Text:
    """Every stage: done, under way, to come; as many a line as there is room for."""
    lines, used = Text(), 0
    for stage in look.stages:
        now = stage is look.stage
        mark = (
            ("x" if plain else "✓") if stage.finished else (">" if plain else "▶") if now else ("-" if plain else "·")
        )
        words = f"{mark} {stage.name.replace('_', ' ')}"
        if stage.total > 1 and (now or stage.finished):
            words += f" {stage.done}/{stage.total}"
        if stage.seconds is not None and stage.finished:
            words += f" {duration(stage.seconds)}"
        if used:
            fits = used + 3 + len(words) <= width
            lines.append("   " if fits else "\n")
            used = used + 3 if fits else 0
        lines.append(words, "bold" if now else "" if stage.finished else "dim")
        used += len(words)
    return lines


def progress(look: Look, stage: Stage, width: int) -> RenderableType:
    """The bar of the stage under way and the time left."""
    if stage.total <= 1:
        running = f"{stage.name.replace('_', ' ')} is under way" if look.state in ("running", "starting") else ""
        return Text(running)
    words = f"{stage.done}/{stage.total}, {duration(stage.seconds)} so far, {duration(look.left())} left"
    if width < WIDE:
        return Text(f"{stage.name} {words}")
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(
        Text(stage.name, style="bold"),
        ProgressBar(stage.total, stage.done, complete_style="cyan", finished_style="cyan"),
        Text(words),
    )
    return bar


def warnings(look: Look) -> Iterator[str]:
    """What should be looked at, a sentence each."""
    if look.state == "stopped":
        yield (
            "the run ended before it was finished (interrupted or killed), or another machine trains it; go on with "
            "the same command and --resume"
        )
    pace = look.pace() or 0.0
    if look.state == "running" and look.quiet is not None:
        longest = max([stage.seconds or 0.0 for stage in look.stages if stage.total == 1], default=0.0)
        patience = max(QUIET_LEAST, QUIET_STEPS * pace) if pace else max(QUIET_UNKNOWN, 3 * longest)
        if look.quiet > patience:
            yield f"no step, sample or evaluation was written for {duration(look.quiet)}" + (
                f"; steps took {duration(pace)}" if pace else ""
            )
    if look.rows:
        last = look.rows[-1]
        odd = [key for key, value in last.items() if isinstance(value, float) and not math.isfinite(value)]
        if odd:
            yield f"step {last['step']} of {last['stage']}: {', '.join(odd)} is not a number"
        if last.get("groups") and last.get("groups") == last.get("dropped_groups"):
            yield f"step {last['step']} learned nothing: all groups were dropped (their members got equal rewards)"
    yield from look.warnings


def curves(look: Look, width: int, plain: bool) -> RenderableType:
    """One line a metric of the newest stage that has steps: title, curve, newest value."""
    stage = look.rows[-1]["stage"]
    rows = [row for row in look.rows if row["stage"] == stage]
    wanted = PRIMING if stage == "priming" else tuple(CURVES)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=max(8, width // 3))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(no_wrap=True, style="dim")
    room = max(4, min(width - 16 - 10 - (24 if width >= WIDE else 0), 100))
    each = max(1, min(3, room // len(rows)))
    for key in wanted:
        values = [float(v) if isinstance(v := row.get(key), int | float) else math.nan for row in rows]
        finite = [value for value in values if math.isfinite(value)]
        if not any(finite):  # nothing, or nothing but zeros
            continue
        between = f"{number(min(finite))} to {number(max(finite))}" if width >= WIDE else ""
        newest = number(values[-1]) if math.isfinite(values[-1]) else "-"
        drawn = "".join(sign * each for sign in sparkline(values, room, plain))
        grid.add_row(CURVES[key], Text(drawn, style="cyan"), newest, between)
    return Group(Text(f"{stage}, step {rows[0]['step']} to {rows[-1]['step']}", style="dim"), grid)


def sparkline(values: Sequence[float], width: int, plain: bool = False) -> str:
    """At most ``width`` signs from lowest to highest, each the mean of its part of the values; a gap where none is
    finite."""
    if not values or width < 1:
        return ""
    n = min(width, len(values))
    parts = [values[i * len(values) // n : (i + 1) * len(values) // n] for i in range(n)]
    kept = [[value for value in part if math.isfinite(value)] for part in parts]
    means = [sum(part) / len(part) if part else math.nan for part in kept]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return " " * n
    blocks = PLAIN_BLOCKS if plain else BLOCKS
    low, span = min(finite), (max(finite) - min(finite))

    def sign(mean: float) -> str:
        if not math.isfinite(mean):
            return " "
        share = (mean - low) / span if 0 < span < math.inf else 0.5
        return blocks[min(len(blocks) - 1, int(share * len(blocks)))]

    return "".join(map(sign, means))


def evaluation_table(evaluation: Evaluation, width: int) -> RenderableType:
    """The newest evaluation beside the run's first: means, with their 95% intervals where there is room."""
    label = evaluation.label.replace("_", " ")
    heading = Text(f"newest evaluation: {label}", style="dim")
    if width < WIDE:
        pairs = [(title, [evaluation.start.get(name), evaluation.values.get(name)]) for name, title in TITLES.items()]
        return Group(
            heading,
            *(Text(f"{title}: {' to '.join(_mean(v) for v in pair if v)}") for title, pair in pairs if pair[-1]),
        )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for _ in range(3):
        grid.add_column(no_wrap=True, justify="right")
    grid.add_row("", *(["before", label, "change"] if evaluation.start else []), style="dim")
    for name, title in TITLES.items():
        now, start = evaluation.values.get(name), evaluation.start.get(name)
        if now is None:
            continue
        cells = [cell(value) if width >= ROOMY else _mean(value) for value in (start, now)]
        gap = now["mean"] - start["mean"] if start and None not in (start["mean"], now["mean"]) else None
        change = "-" if gap is None else ("+" if gap >= 0 else "") + short(gap)
        grid.add_row(title, *([*cells, change] if evaluation.start else cells[1:]))
    return Group(heading, grid)


def _mean(value: Estimate | None) -> str:
    return "-" if value is None or value["mean"] is None else short(value["mean"])


def sample_text(sample: Sample, console: Console, width: int, lines: int) -> RenderableType:
    """The newest memory, what was added to and lost from the one before marked, in at most ``lines`` lines."""
    about = f"newest memory: step {sample.step}, document {sample.document}, memory {sample.write}"
    if sample.reward is not None:
        about += f", reward {number(sample.reward)}"
    coloured = console.color_system is not None and not console.no_color
    text = Text()
    for op, piece in diff(sample.before[:SAMPLE_CHARS], sample.after[:SAMPLE_CHARS]):
        gap = " " if op == ADDED and text and not text.plain[-1].isspace() else ""
        text.append(gap).append_text(marked(op if sample.before else KEPT, piece, coloured))
    shown = list(text.wrap(console, width))
    if not sample.after.strip():
        shown = [Text("(empty)"), *shown]
    if len(shown) > lines - 1 > 0:
        shown = [*shown[: max(1, lines - 2)], Text("...", style="dim")]
    key = "" if coloured else "  {+added+} [-lost-]"
    return Group(Text(about + key, style="dim", overflow="ellipsis", no_wrap=True), *shown)


def marked(op: Op, piece: str, coloured: bool) -> Text:
    """A piece as it is, added (green, bold) or lost (red, struck through); as ``wdiff`` marks them without colour."""
    lines = piece.replace("\n", " ")
    words = lines.strip()
    if op == KEPT or not words:
        return Text(lines)
    left, _, right = lines.partition(words)
    if not coloured:
        return Text(f"{left}{{+{words}+}}{right}" if op == ADDED else f"{left}[-{words}-]{right}")
    sign, style = ("+", "bold green") if op == ADDED else ("-", "strike red")
    return Text.assemble(left, (f"{sign}{words}", style), right)
