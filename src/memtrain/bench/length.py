"""Length: reading costs time in proportion to the text and no memory on top of it.

One reader, the real agent and engine; each length in a process of its own, several times in turn.
"""

from __future__ import annotations

import asyncio
from typing import Any

from memtrain.bench.child import run_child
from memtrain.bench.episodes import Endless
from memtrain.bench.harness import spread
from memtrain.bench.models import Place, load_tokenizer
from memtrain.bench.progress import Progress
from memtrain.bench.settings import BenchSettings, recipe_of
from memtrain.bench.workload import long_text
from memtrain.memory.prompts import QUESTION, Prompts
from memtrain.memory.reader import read, split_chunks
from memtrain.types import SamplingParams


def read_document(engine: Any, settings: BenchSettings, text: str, chunks: int) -> int:
    """Read the first chunks of a text; returns how many memories were written."""
    recipe = recipe_of(settings)
    memory = recipe.memory.model_copy(update={"max_chunks": chunks, "memory_tokens": settings.length_memory_tokens})
    prompts = Prompts(engine.tokenizer, memory)
    cut = split_chunks(text, engine.tokenizer, memory)
    if len(cut) != chunks:
        raise RuntimeError(f"the text gave {len(cut)} chunks, not {chunks}")
    params = SamplingParams(settings.length_memory_tokens, temperature=0.0)
    trajectory = asyncio.run(
        read(Endless(engine), prompts, QUESTION, cut, params, document_id="length", index=0)  # type: ignore[arg-type]
    )
    return len(trajectory.turns)


def bench_length(settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    """Time and peak memory of the long document by those of the short one."""
    short, long = settings.length_chunks
    tokenizer = load_tokenizer(Place.of(settings))
    texts = {chunks: long_text(tokenizer, settings, chunks * settings.chunk_tokens) for chunks in (short, long)}
    runs: dict[int, list[dict[str, Any]]] = {short: [], long: []}
    for number in range(settings.rounds):
        for chunks in (short, long):
            progress(f"round {number + 1}/{settings.rounds}: {chunks} chunks")
            runs[chunks].append(run_child("read-length", settings, text=texts[chunks], chunks=chunks))
    pairs = list(zip(runs[short], runs[long], strict=True))
    return {
        "work": {"chunks": [short, long], "new_tokens_each": settings.length_memory_tokens, "readers": 1},
        "seconds": {str(chunks): spread([run["seconds"] for run in found]) for chunks, found in runs.items()},
        "peak_bytes": {str(chunks): spread([run["peak_bytes"] for run in found]) for chunks, found in runs.items()},
        "time_ratio": spread([b["seconds"] / a["seconds"] for a, b in pairs]),
        "memory_ratio": spread([b["peak_bytes"] / a["peak_bytes"] for a, b in pairs]),
        "chunk_ratio": long / short,
    }
