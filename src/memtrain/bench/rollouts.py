"""New tokens a second of one memory-write turn: D documents x G trajectories, prefill included.

Every sequence has its own prompt (instructions, a chunk its group shares, a memory of its own) and writes exactly
``memory_tokens`` new tokens at temperature 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from memtrain.bench import flops
from memtrain.bench.harness import Contestant, contest
from memtrain.bench.limit import ROWS, ideal_seconds, measure_limit
from memtrain.bench.models import Place, load_engine, load_tokenizer
from memtrain.bench.peers import vllm
from memtrain.bench.peers.generate import (
    ContinuousSettings,
    best_continuous,
    best_generate,
    generate,
    generate_batch,
    load_peer,
)
from memtrain.bench.progress import Progress
from memtrain.bench.settings import BenchSettings
from memtrain.bench.workload import Turns, describe, write_turns
from memtrain.types import SamplingParams

OURS = "memtrain"
SHORT = 4
"""New tokens of a warm-up run."""


def bench_rollouts(settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    """Both sizes, all peers."""
    place = Place.of(settings)
    tokenizer = load_tokenizer(place)
    batches = {f"{n} x {settings.group_size}": write_turns(tokenizer, settings, n) for n in {1, settings.documents}}
    engine = load_engine(place, settings)
    peer = load_peer(place.folder, place.device, place.dtype)
    limit = measure_limit(engine.loaded.base, place.device, place.dtype)
    longest = max(len(prompt) for turns in batches.values() for prompt in turns.prompts) + settings.memory_tokens
    skipped, served = {}, None
    reason = vllm.missing()
    if reason:
        skipped["vllm"] = reason
    else:
        progress("vLLM compiles its graphs")
        most = max(len(turns.prompts) for turns in batches.values())
        served = vllm.VllmPeer(place.folder, str(place.dtype).removeprefix("torch."), most, longest, place.device)
    found: dict[str, Any] = {"batches": {}, "skipped": skipped, "limit": limit}
    for name, turns in sorted(batches.items(), key=lambda item: len(item[1].prompts)):
        contestants = [ours(engine, turns), *transformers_peers(peer, tokenizer, turns, place.device)]
        if served is not None:
            contestants.append(_vllm(served, turns))
        result = contest(contestants, settings.rounds, place.device, progress.at(name))
        result["work"] = describe(turns)
        result["limit"] = share_of_limit(engine, turns, limit, result["contestants"][OURS]["seconds"]["median"])
        found["batches"][name] = result
    if served is not None:
        served.close()
    return found


def sample_all(engine: Any, turns: Turns, new_tokens: int | None = None) -> list[Any]:
    """All sequences of a batch by an engine, end tokens ignored. Raises where one is short."""
    params = SamplingParams(new_tokens or turns.new_tokens, temperature=1.0, ignore_eos=True)

    async def run() -> list[Any]:
        return [c for [c] in await asyncio.gather(*(engine.sample(prompt, params) for prompt in turns.prompts))]

    completions = asyncio.run(run())
    if {len(completion.token_ids) for completion in completions} != {params.max_tokens}:
        raise RuntimeError("our engine wrote fewer tokens than it was asked for")
    return completions


def ours(engine: Any, turns: Turns) -> Contestant:
    """Our engine; reports log-probs with every token."""
    return Contestant(
        OURS,
        lambda: sample_all(engine, turns),
        turns.total_new,
        lambda: sample_all(engine, turns, SHORT),
        {"max_sequences": engine.max_sequences, "compiled": engine.compile_sampler},
    )


def transformers_peers(model: Any, tokenizer: Any, turns: Turns, device: torch.device) -> list[Contestant]:
    """``generate`` for every batch; ``generate_batch`` where the batch is a single group.

    On a CPU continuous batching is fastest with a few requests in flight, so that more waiting ones change nothing
    but the length of the run: the small batch tells its rate.
    """

    def entry(name: str, call: Callable[..., Any], chosen: Any) -> Contestant:
        return Contestant(
            name,
            lambda: call(model, tokenizer, turns.prompts, turns.new_tokens, chosen),
            turns.total_new,
            lambda: call(model, tokenizer, turns.prompts[: chosen_batch(chosen)], SHORT, chosen),
            asdict(chosen),
        )

    peers = [entry("transformers generate", generate, best_generate(device))]
    if turns.groups == 1 or device.type == "cuda":
        peers.append(entry("transformers generate_batch", generate_batch, best_continuous(device)))
    return peers


def chosen_batch(chosen: Any) -> int:
    """How many sequences a peer takes at once: what a warm-up needs."""
    return chosen.requests if isinstance(chosen, ContinuousSettings) else chosen.batch


def _vllm(served: vllm.VllmPeer, turns: Turns) -> Contestant:
    return Contestant(
        "vllm",
        lambda: served.generate(turns.prompts, turns.new_tokens),
        turns.total_new,
        lambda: served.generate(turns.prompts, turns.new_tokens),
        served.settings,
    )


def share_of_limit(engine: Any, turns: Turns, limit: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Our time against that of the matrix products alone at the measured rates (see ``flops.py``, ``limit.py``)."""
    size = flops.ModelSize.of(engine.loaded.base)
    before, steps = flops.prefill(size, turns.prompts), flops.decoding(size, turns.prompts, turns.new_tokens)
    at_once = min(len(turns.prompts), engine.max_sequences)
    rows = min((m for m in ROWS if m >= at_once), default=max(ROWS))
    ideal = {"prefill": ideal_seconds(before, limit, 2048), "decoding": ideal_seconds(steps, limit, rows)}
    return {
        "flops": {"prefill": before.total, "decoding": steps.total},
        "ideal_seconds": ideal,
        "decoding_rate_at_rows": rows,
        "gflops": (before.total + steps.total) / seconds / 1e9,
        "share": sum(ideal.values()) / seconds,
    }
