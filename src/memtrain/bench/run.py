"""``memtrain bench``: run benchmarks one after the other, write a JSON file each, draw and print the table."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memtrain.bench.progress import Progress
from memtrain.bench.report import render, write_readme
from memtrain.bench.settings import BENCHMARKS, BenchSettings, override
from memtrain.bench.settings import quick as shrink
from memtrain.errors import UserError
from memtrain.report.console import Screen
from memtrain.report.summary import write_whole

FORMAT = 1
Bench = Callable[[BenchSettings, Progress], dict[str, Any]]


def bench(names: Sequence[str], settings: BenchSettings, out: Path) -> None:
    """Run the named benchmarks (all of them for ``all``), keep what other files ``out`` holds, one file each.

    Raises :class:`UserError` for an unknown name or a folder that cannot be written.
    """
    chosen = choose(names)
    _quiet()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}); choose another --out") from None
    with Screen(f"memtrain bench → {out}") as screen:
        screen.stage("benchmarks", len(chosen))
        for name in chosen:
            result = run_one(name, settings, Progress(screen.note, screen.inner, name))
            write_result(out / f"{name}.json", result)
            screen.advance()


def command(names: Sequence[str], out: Path, quick: bool, readme: Path | None, overrides: Sequence[str]) -> None:
    """What ``memtrain bench`` does. ``report`` alone reads what is there; with other names it follows them."""
    settings = override(shrink(BenchSettings()) if quick else BenchSettings(), overrides)
    others = [name for name in names if name != "report"]
    if others:
        bench(others, settings, out)
    print(report(out, readme))


def choose(names: Sequence[str]) -> list[str]:
    """Names in the order of running; ``all`` stands for the benchmarks of the table."""
    known = [*BENCHMARKS, "tune"]
    unknown = [name for name in names if name not in (*known, "all")]
    if unknown:
        raise UserError(f"no benchmark named {unknown[0]!r}; choose from all, report, {', '.join(known)}")
    wanted = {*names, *(BENCHMARKS if "all" in names else ())}
    return [name for name in known if name in wanted]


def run_one(name: str, settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    """One benchmark with everything a reader needs around it."""
    import torch

    from memtrain.bench.environment import environment
    from memtrain.engines.torch.model import choose_device

    device = choose_device(settings.device)
    began = time.perf_counter()
    result = _benchmark(name)(settings, progress)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {
        "format": FORMAT,
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "environment": environment(device),
        "settings": settings.to_json(),
        "seconds": time.perf_counter() - began,
        "result": result,
    }


def _benchmark(name: str) -> Bench:
    from memtrain.bench import decode, length, limit, rollouts, step, tuning, update

    table: dict[str, Bench] = {
        "limit": limit.bench_limit,
        "decode": decode.bench_decode,
        "rollouts": rollouts.bench_rollouts,
        "update": update.bench_update,
        "step": step.bench_step,
        "length": length.bench_length,
        "tune": tuning.bench_tune,
    }
    return table[name]


def write_result(path: Path, result: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    write_whole(path, json.dumps(result, indent=1) + "\n")


def report(out: Path, readme: Path | None = None) -> str:
    """The table of a folder of results; draws ``bench.png`` beside them and fills a README's marked place."""
    from memtrain.bench.plot import draw

    text, lines = render(out)
    draw(lines, out / "bench.png")
    if readme is not None:
        write_readme(readme, text)
    return text


def _quiet() -> None:
    """Peers warn about what is meant here (no end token, no progress); what fails still raises."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
