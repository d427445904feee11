"""A plan for a person, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.planning import compute
from memtrain.planning.cost import ABOUT
from memtrain.planning.hardware import GB
from memtrain.planning.result import OnDevice, Plan
from memtrain.planning.stages import Line
from memtrain.report.console import print_grid


def show(plan: Plan) -> None:
    """Print the plan."""
    console = Console()

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    def grid(title: str, rows: list[list[str]]) -> None:
        line(title, "bold")
        print_grid(rows, [row[0] for row in rows[1:]], lead=1, width=16)

    grid(f"{plan.recipe.name}: tokens the model works on, shared prefixes once (in brackets: apart)", work_rows(plan))
    what = "the whole comparison" if plan.rows else "all stages"
    grid(f"{plan.options.devices} of each device: time by stage; energy and cost of {what}", device_rows(plan))
    if plan.rows:
        grid("comparison: what each row adds, all seeds", compare_rows(plan))
    if rows := worker_rows(plan):
        grid(f"{plan.options.devices} data-parallel workers, which shard nothing: a training step", rows)
        line(traffic_sentence(plan))
    disk = ", ".join(f"{name} {size / GB:,.1f}" for name, size in plan.disk.items())
    line(f"disk of the MemTrain stage, GB: {disk}")
    for note in plan.notes:
        line(f"note: {note}", "bold")
    line("assumed (change with --assume NAME=VALUE):")
    for text in assumptions(plan):
        line(f"  {text}")


def assumptions(plan: Plan) -> list[str]:
    """Everything that the plan believes, a line each."""
    lines = [f"{name} = {value:g}: {ABOUT[name]}" for name, value in asdict(plan.assumed).items()]
    for one in plan.on:
        if one.efficiencies:
            for stage, shares in one.efficiencies.items():
                reached = ", ".join(f"{name} {shares[name]:.2f}" for name in ("prefill", "decode", "score", "train"))
                lines.append(f"{one.place.device.title}, {stage}: {reached} of its nominal peak, in place of the above")
    devices = plan.options.devices
    spread = "sharing the work evenly, weights and optimiser sharded (data-parallel workers shard nothing: their table)"
    lines.append(f"devices = {devices}{f', {spread}' if devices > 1 else ''}")
    lines.append(f"{plan.options.carbon:g} g CO2e a kWh; hours count the model's work, not the building of documents")
    shape = plan.shape
    lines.append(f"{shape.name}: {shape.parameters / 1e9:.3g} B weights, from {shape.source}")
    return lines


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything, in base units: tokens, FLOPs, bytes, seconds."""
    return {
        "recipe": plan.recipe.name,
        "fingerprint": plan.recipe.fingerprint(),
        "model": asdict(plan.shape),
        "assumed": asdict(plan.assumed),
        "options": asdict(plan.options),
        "lines": [
            {
                "stage": line.stage,
                "name": line.name,
                "count": line.count,
                "tokens": _tokens(line),
                "flops": compute.by_phase(plan.shape, line.work, line.training),
            }
            for line in plan.lines
        ],
        "devices": [_device_json(plan, one) for one in plan.on],
        "traffic_bytes": None if plan.traffic is None else asdict(plan.traffic),
        "disk_bytes": plan.disk,
        "notes": plan.notes,
        "assumptions": assumptions(plan),
    }


def _device_json(plan: Plan, one: OnDevice) -> dict[str, Any]:
    return {
        "device": asdict(one.place.device),
        "devices": one.place.devices,
        "decode_together": one.need.slots,
        "fits": one.fits,
        "memory_bytes": {
            "kept": one.need.kept,
            "sampling": one.need.sampling,
            "training": one.need.training,
            "peak": one.need.peak,
        },
        "seconds": {f"{line.stage}: {line.name}": phases for line, phases in zip(plan.lines, one.seconds, strict=True)},
        "total_seconds": one.total,
        "compare_seconds": dict(zip((row.title for row in plan.rows), one.rows, strict=True)),
        "bill": asdict(one.bill),
        "measured_seconds": one.measured,
        "efficiencies": one.efficiencies,
        "workers": [
            {
                "lora_rank": way.rank,
                "fits": way.fits,
                "peak_bytes": way.need.peak,
                "gradient_bytes": way.gradients,
                "sent_bytes": way.sent,
                "step_seconds": way.step,
                "in_node_seconds": way.in_node,
                "across_seconds": way.across,
            }
            for way in one.workers
        ],
    }


def _tokens(line: Line) -> dict[str, float]:
    work = line.work
    return {
        "prefilled": work.prefill.tokens,
        "prefilled_separate": work.prefill.separate,
        "decoded": work.decoded,
        "scored": work.score.tokens,
        "scored_separate": work.score.separate,
        "reference": work.reference.tokens,
        "trained": work.train.tokens,
        "trained_separate": work.train.separate,
        "rows": work.rows,
        "updates": work.updates,
    }


def work_rows(plan: Plan) -> list[list[str]]:
    """Head and a row a line: tokens by kind, FLOPs."""
    rows = [["stage", "times", "prefilled", "decoded", "scored", "trained", "FLOPs"]]
    for line in plan.lines:
        work = line.work
        flops = sum(compute.by_phase(plan.shape, work, line.training).values())
        rows.append(
            [
                f"{'MemTrain' if line.stage == 'memtrain' else 'task'}: {line.name}",
                f"{line.count:,}",
                _pair(work.prefill.tokens, work.prefill.separate),
                _short(work.decoded),
                _pair(work.score.tokens, work.score.separate),
                _pair(work.train.tokens, work.train.separate),
                f"{flops:.2g}",
            ]
        )
    return rows


def device_rows(plan: Plan) -> list[list[str]]:
    """Head and a row a device: memory, time of each line, the bill."""
    priced = plan.options.price is not None
    head = ["device", "GB each", *(_head(line) for line in plan.lines)]
    head += ["hours", "device-hours", "kWh", "kg CO2e", *(["cost"] if priced else [])]
    rows = [head]
    for one in plan.on:
        need = f"{one.need.peak / GB:,.1f} of {one.place.device.memory / GB:,.0f}"
        if one.fits:
            bill = one.bill
            times = [_time(sum(phases.values())) for phases in one.seconds]
            sums = [_figure(number) for number in (bill.hours, bill.device_hours, bill.kwh, bill.co2_kg)]
            cost = [] if bill.money is None else [f"{bill.money:,.2f}"]
            rows.append([one.place.device.title, need, *times, *sums, *cost])
        else:
            rows.append([one.place.device.title, f"{need}: does not fit", *["-"] * (len(head) - 2)])
    return rows


def compare_rows(plan: Plan) -> list[list[str]]:
    """Head and a row for each row of the comparison: hours on the devices that it fits."""
    fitting = [one for one in plan.on if one.fits]
    rows = [["row", "seeds", *(one.place.device.title for one in fitting)]]
    for place, row in enumerate(plan.rows):
        rows.append([row.title, str(row.times), *(_time(one.rows[place]) for one in fitting)])
    return rows


def worker_rows(plan: Plan) -> list[list[str]]:
    """Head and a row for each way to train on data-parallel workers; nothing where one device is planned."""
    rows = []
    for one in plan.on:
        for way in one.workers:
            trains = f"LoRA {way.rank}" if way.rank else "all weights"
            need = f"{way.need.peak / GB:,.1f} of {one.place.device.memory / GB:,.0f}"
            rows.append(
                [
                    one.place.device.title,
                    trains,
                    need if way.fits else f"{need}: too small",
                    "-" if way.step is None else _seconds(way.step),
                    _bytes(way.gradients),
                    _bytes(way.sent),
                    "-" if way.in_node is None else _exchange(way.in_node, way.step),
                    _exchange(way.across, way.step),
                ]
            )
    across = f"nodes at {plan.assumed.interconnect:g} GB/s"
    head = ["device", "trains", "GB each", "a step", "gradients", "each sends", "exchange in a node", across]
    return [head, *rows] if rows else []


def traffic_sentence(plan: Plan) -> str:
    """What a step exchanges with a server of its own."""
    found = plan.traffic
    if found is None:
        return ""
    link = plan.assumed.server_link * GB

    def told(size: float) -> str:
        return f"{_bytes(size)} ({_seconds(size / link)} at {plan.assumed.server_link:g} GB/s)"

    return (
        f"servers: a vLLM server reads a LoRA adapter of rank {found.adapter_rank} after every update, "
        f"{told(found.adapter)}; a Tinker-API server gets {told(found.to_server)} a step and sends back "
        f"{told(found.from_server)}, no weights"
    )


def _exchange(seconds: float, step: float | None) -> str:
    if step is None:
        return _seconds(seconds)
    share = 100 * seconds / (seconds + step)
    return f"{_seconds(seconds)} ({f'{share:.2g}' if share >= 0.01 else '<0.01'}%)"


def _seconds(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 1000 else _time(seconds)


def _bytes(size: float) -> str:
    return f"{size / GB:,.1f} GB" if size >= GB else f"{size / 1e6:,.0f} MB"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _head(line: Line) -> str:
    return line.name if line.stage == "qa" else f"{line.name}s" if line.name == "evaluation" else line.name


def _pair(shared: float, separate: float) -> str:
    return f"{_short(shared)} ({_short(separate)})" if separate else "-"


def _short(number: float) -> str:
    """``1,234,567`` -> ``1.23 M``."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}" if number else "-"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"
