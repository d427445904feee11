"""Measurements that need a process of their own: peak memory, and reading long documents.

``run_child`` starts ``python -m memtrain.bench.child KIND`` with the settings as JSON on its standard input; the last
line it prints is the result.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from memtrain.bench.settings import BenchSettings


def run_child(kind: str, settings: BenchSettings, **options: Any) -> dict[str, Any]:
    """What a fresh process measures. Raises RuntimeError with its last words where it fails."""
    command = [sys.executable, "-m", "memtrain.bench.child", kind]
    told = json.dumps({"settings": settings.to_json(), "options": options})
    done = subprocess.run(command, input=told, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{kind} failed in its own process:\n{done.stderr[-2000:]}")
    return dict(json.loads(lines[-1]))


def update_memory(settings: BenchSettings, who: str, rows: list[Any]) -> dict[str, Any]:
    """Peak of one update on a group of write rows, all in one micro-batch.

    A small update comes first, so that optimiser state, reference and the libraries' own buffers stand before; what is
    measured is gradients, activations and logits.
    """
    from memtrain.bench import update
    from memtrain.bench.episodes import configs
    from memtrain.bench.memory import give_up_when_full, peak_memory
    from memtrain.bench.models import Place, load_engine
    from memtrain.types import Row

    place = Place.of(settings)
    group = [Row(tuple(prompt), tuple(ids), (-1.0,) * len(ids), advantage) for prompt, ids, advantage in rows]
    budget = sum(len(row.prompt_ids) + len(row.completion_ids) for row in group) * 2  # everything at once
    loss, optimiser = configs(settings)
    small = [Row(row.prompt_ids[:8], row.completion_ids[:8], row.logprobs[:8], row.advantage) for row in group[:2]]
    step: Callable[[Any], Any]
    if who == update.OURS:
        engine = load_engine(place, settings, budget)

        def step(part: Any) -> Any:
            return asyncio.run(engine.update(part, loss, optimiser))

    else:
        trainer = update.load_trainer(place, settings)
        trainer.micro_batch_tokens = budget

        def step(part: Any) -> Any:
            return trainer.update(part, loss, optimiser)

    step(small)
    about = {"rows": len(group), "tokens_separate": budget // 2, "who": who}
    if place.device.type == "cpu":
        give_up_when_full(lambda found: print(json.dumps(found | about), flush=True))
    return peak_memory(lambda: step(group), place.device) | about


def read_length(settings: BenchSettings, text: str, chunks: int) -> dict[str, Any]:
    """Seconds and peak memory of reading so many chunks of a text with the real reader and engine."""
    from memtrain.bench.length import read_document
    from memtrain.bench.memory import peak_memory
    from memtrain.bench.models import Place, load_engine

    place = Place.of(settings)
    engine = load_engine(place, settings)
    read_document(engine, settings, text, 2)  # libraries load, buffers grow to the size of a chunk
    seconds: list[float] = []

    def work() -> None:
        began = time.perf_counter()
        read_document(engine, settings, text, chunks)
        seconds.append(time.perf_counter() - began)

    found = peak_memory(work, place.device)
    return found | {"chunks": chunks, "seconds": seconds[0]}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"update-memory": update_memory, "read-length": read_length}


def main() -> None:
    """Read the task, do it, print its result."""
    told = json.load(sys.stdin)
    values = told["settings"] | {"length_chunks": tuple(told["settings"]["length_chunks"])}
    print(json.dumps(KINDS[sys.argv[1]](BenchSettings(**values), **told["options"])))


if __name__ == "__main__":
    main()
