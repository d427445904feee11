"""One decoding step: its time, and how much of it the matrix products take.

A rollout is a prefill and then equal steps, so the difference between a long and a short rollout of the same prompts is
steps alone; times are taken so, without a profiler. The shares are of the operators' own times in some steps in the
middle of a rollout under ``torch.profiler``: products over everything the profile saw. A batched product copies
operands that do not lie as its kernel wants them; the share is given with those copies, which are part of the operator,
and without. Our own attention kernel times its products itself: they count, its softmax and merge do not. What Python
does between operators is in the time of a step and not in the profile, so the share of the unprofiled step is given
too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from memtrain.bench.harness import seconds_of, spread, synchronise
from memtrain.bench.models import Place, load_engine, load_tokenizer
from memtrain.bench.progress import Progress
from memtrain.bench.rollouts import sample_all
from memtrain.bench.settings import BenchSettings
from memtrain.bench.workload import Turns, describe, write_turns
from memtrain.engines.torch.native.decode import kernel_milliseconds

LINEAR = (
    "aten::mm",
    "aten::addmm",
    "aten::_addmm_activation",
    "aten::linear",
    "aten::mkldnn_linear",
    "aten::_scaled_mm",
    "mkldnn::_linear_pointwise",
    "mkldnn::_linear_pointwise.binary",
    "mkldnn_prepacked::linear_run",
)
"""Operators that multiply by weights (their own time, without what they call)."""
BATCHED = ("aten::bmm", "aten::baddbmm")
"""Operators that multiply activations: scores and weighted sums of attention."""
FUSED = ("scaled_dot_product", "_flash_attention", "_efficient_attention")
"""Parts of names of fused attention kernels: products and softmax in one, so they are told apart and not counted."""
SHOWN = 15
OURS = "memtrain::attend"
"""Our own attention in a compiled layer: what of it is not products in the kernel is everything else."""


def bench_decode(settings: BenchSettings, progress: Progress) -> dict[str, Any]:
    """Milliseconds a step and shares, at ``documents`` groups of ``group_size``."""
    place = Place.of(settings)
    engine = load_engine(place, settings)
    turns = write_turns(load_tokenizer(place), settings, settings.documents)
    long, short = settings.memory_tokens * 3 // 4, settings.memory_tokens // 4
    steps = long - short
    progress("warm-up")
    sample_all(engine, turns, short)
    per_step = []
    for number in range(max(3, settings.rounds)):
        progress(f"round {number + 1}: {short} and {long} tokens")
        brief, whole_run = (seconds_of(partial(sample_all, engine, turns, n), place.device) for n in (short, long))
        per_step.append((whole_run - brief) / steps * 1e3)
    progress("profile")
    own, whole, kernel = operator_times(engine, turns, (short, long), place.device)
    step_ms = spread(per_step)
    middle = (long + short) // 2
    size = [len(prompt) for prompt in turns.prompts]
    work = describe(replace(turns, new_tokens=long))
    return {
        "work": work | {"steps": steps, "own_tokens_mean": sum(size) / len(size) + middle - _mean(work)},
        "ms_per_step": step_ms,
        "new_tokens_per_second_decoding": len(turns.prompts) / step_ms["median"] * 1e3,
        "profile": shares(own, whole, step_ms["median"], kernel),
    }


def shares(
    own_ms: dict[str, float], whole_ms: dict[str, float], step_ms: float, kernel_ms: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """Milliseconds a step by operator, own and with what it calls -> milliseconds and shares by kind.

    ``kernel_ms``: of our own attention kernel, in its products and as a whole. Uncompiled layers call it from Python,
    where the profile does not see it: it is then added to the total.
    """
    total = sum(value for value in own_ms.values() if value > 0)
    products, in_kernel = kernel_ms
    if OURS not in own_ms:
        total += in_kernel
    linear = sum(own_ms.get(name, 0.0) for name in LINEAR)
    batched = sum(whole_ms.get(name, 0.0) for name in BATCHED) + products
    kernels = sum(own_ms.get(name, 0.0) for name in BATCHED) + products
    fused = sum(value for name, value in own_ms.items() if any(part in name for part in FUSED))
    top = sorted(own_ms.items(), key=lambda item: -item[1])[:SHOWN]
    return {
        "profiled_ms_per_step": total,
        "linear_ms": linear,
        "attention_products_ms": batched,
        "attention_products_without_copies_ms": kernels,
        "own_kernel_ms": in_kernel,
        "own_kernel_products_ms": products,
        "fused_attention_ms": fused,
        "share_products": (linear + batched) / total if total else 0.0,
        "share_products_without_copies": (linear + kernels) / total if total else 0.0,
        "share_linear": linear / total if total else 0.0,
        "share_products_of_unprofiled_step": (linear + batched) / step_ms,
        "counted_as_linear": list(LINEAR),
        "counted_as_attention_products": list(BATCHED),
        "operators_ms_per_step": dict(top),
    }


def operator_times(
    engine: Any, turns: Turns, window: tuple[int, int], device: torch.device
) -> tuple[dict[str, float], dict[str, float], tuple[float, float]]:
    """Milliseconds a step of every operator, its own and with what it calls, in steps ``window`` of one rollout; and of
    our own attention kernel, in its products and as a whole.

    On a GPU those of the kernels it launched.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    gpu = device.type == "cuda"
    if gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profile = torch.profiler.profile(activities=activities)
    first, last = window[0], (window[0] + window[1]) // 2
    step, kernel = 0, (0.0, 0.0)

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal step, kernel
        if kwargs["input_ids"].shape[1] > 1:
            return  # a prefill
        step += 1
        if step == first:
            kernel = kernel_milliseconds()
            profile.start()
        elif step == last:
            synchronise(device)
            profile.stop()
            products, total = kernel_milliseconds()
            kernel = (products - kernel[0]) / (last - first), (total - kernel[1]) / (last - first)

    hook = engine.sampling_model.decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        sample_all(engine, turns, window[1])
    finally:
        hook.remove()
    own, whole = {}, {}
    for event in profile.key_averages():
        if gpu and event.device_type != torch.autograd.DeviceType.CPU:
            continue  # kernels appear a second time under their own names
        own[event.key] = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e3 / (last - first)
        whole[event.key] = (event.device_time_total if gpu else event.cpu_time_total) / 1e3 / (last - first)
    return own, whole, kernel


def _mean(work: dict[str, Any]) -> float:
    shared = work["shared_tokens_by_group"]
    return sum(shared) / len(shared)
