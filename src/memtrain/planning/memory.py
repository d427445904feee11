"""Bytes on each device, and on the disk.

Kept all along: weights, float32 masters, two moments, the reference of the KL term. Two states alternate on top, and
the larger decides: *sampling* (the sampler's own copy of the weights, keys and values, logits) and *training*
(gradients, activations of one micro-batch, a block of logits). N devices share what is kept all along, gradients and
the sampler's copy evenly (fully sharded, two layers gathered at a time); activations and cache are each device's own.
Data-parallel workers share nothing but the sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from memtrain.planning.compute import Training
from memtrain.planning.hardware import Device
from memtrain.planning.models import ModelShape
from memtrain.planning.work import PREFILL_TOKENS, DecodeBatch, Work
from memtrain.recipe import Recipe

LOGITS_BLOCK = 1 << 26
"""Logits that stand in memory at once while training (``engines/torch/head.py``), the larger of its two limits."""
USABLE = 0.94
"""Share of a device's memory that is left beside the driver, the kernels and what allocation wastes."""
CACHE_SHARE = 0.66
"""Share of the free memory that the sampler's cache may take (``engines/torch/prefill.py``)."""
TEXT_BYTES = 4.45
"""Bytes of a token as text."""
PACKED = 0.45
"""What compression leaves of text in Parquet."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they are for."""

    kept: dict[str, float]
    sampling: dict[str, float]
    training: dict[str, float]
    cache: float
    """Bytes that keys and values may take beside all else."""
    slots: int | None
    """Sequences of the largest kind that can decode together in that; 0 where not even one can, None where none do."""

    @property
    def peak(self) -> float:
        """The larger of the two states."""
        kept = sum(self.kept.values())
        return kept + max(sum(self.sampling.values()), sum(self.training.values()))


def activations(shape: ModelShape, tokens: float, training: Training) -> float:
    """Bytes that a forward pass over so many tokens keeps for its backward pass.

    A layer keeps, with b bytes a number and widths d (hidden), q (H x D), k (K x D) and f (feed-forward): of each of
    its two norms the float32 input, the normalised input and the output, (4 + 2b) d; queries and attention's output,
    2bq; keys and values, 2bk; and four of the feed-forward layer's inner numbers, 4bf. Norms of queries and keys keep
    (4 + b)(q + k) more. With checkpointing a layer keeps its input alone, and one layer at a time all of it.
    """
    b = training.weight_bytes
    widths = shape.attention_width + shape.kv_width
    layer = 2 * (4 + 2 * b) * shape.hidden + 2 * b * widths + 4 * b * shape.intermediate
    if shape.qk_norm:
        layer += (4 + b) * widths
    if training.checkpointing:
        return tokens * (shape.layers * b * shape.hidden + layer)
    return tokens * shape.layers * layer


def cache_bytes(batch: DecodeBatch, shape: ModelShape, training: Training) -> float:
    """Keys and values of one sequence: its share of the prompts, and room for the longest completion."""
    per_token = shape.kv_width_all * training.weight_bytes
    return per_token * (batch.cached / max(1.0, batch.sequences) + batch.room)


def memory(
    shape: ModelShape,
    work: Work,
    training: Training,
    device: Device,
    devices: int,
    wanted: int,
    sharded: bool = True,
) -> Memory:
    """What one of ``devices`` devices needs; ``wanted`` sequences decode together on each where they fit.

    Without ``sharded`` each device holds everything and only the sequences are shared out (plain data parallel).
    """
    b, lora = training.weight_bytes, training.lora_rank
    trains = work.updates > 0
    trained = (shape.lora_parameters(lora) if lora else shape.parameters) if trains else 0

    def shared(size: float) -> float:
        return size / devices if sharded else size

    weights = shape.parameters * b
    # While it computes, a sharded model gathers two layers at a time.
    gathered = min(weights - shared(weights), 2 * weights / shape.layers) if devices > 1 and sharded else 0.0
    reference = (4 if lora else b) * trained if training.reference else 0
    kept = {
        "weights": shared(weights) + gathered,
        "float32 masters": shared(4 * trained) if not lora and b < 4 else 0.0,
        "two moments": shared(8 * trained),
        "reference": shared(reference),
    }
    if lora and trains:
        kept["adapter"] = shared(4 * trained)
    copied = b * (shape.body + shape.head) if device.is_cpu and b == 2 else b * shape.body if lora else 0
    per_pass = min(PREFILL_TOKENS, max(work.prefill.tokens, work.score.tokens))
    sampling = {
        "sampler's copy of the weights": shared(copied),
        "activations of a prefill pass": per_pass * b * (6 * shape.hidden + 3 * shape.intermediate),
    }
    room = max(0.0, device.memory * USABLE - sum(kept.values()) - sum(sampling.values()))
    cache = room if device.is_cpu else room * CACHE_SHARE
    slots = None
    if work.decode:
        # The batch that would take most, were there room for all of it.
        def size(batch: DecodeBatch) -> float:
            return min(wanted, math.ceil(batch.sequences / devices)) * cache_bytes(batch, shape, training)

        batch = max(work.decode, key=size)
        one = cache_bytes(batch, shape, training)
        slots = min(wanted, math.ceil(batch.sequences / devices), int(cache / one))
        sampling["keys and values"] = max(1, slots) * one
        sampling["logits of a step"] = max(1, slots) * (shape.head / shape.hidden) * 12
    update = {
        "gradients": shared(4 * trained),
        "activations of a micro-batch": activations(shape, work.largest_pass, training),
        "a block of logits": LOGITS_BLOCK * 4.0 if trains else 0.0,
    }
    return Memory(kept, sampling, update, cache, slots)


def fits(need: Memory, device: Device) -> bool:
    """Whether the peak leaves a little of the device free."""
    return need.peak <= device.memory * USABLE


def disk(
    shape: ModelShape, recipe: Recipe, training: Training, document_tokens: float, text: float
) -> dict[str, float]:
    """Bytes on the disk of one MemTrain stage; ``text``: tokens of all prompts and completions that GRPO draws."""
    lora, b = training.lora_rank, training.weight_bytes
    trained = shape.lora_parameters(lora) if lora else shape.parameters
    documents = recipe.documents.train + recipe.documents.held_out
    state = 12 * trained + ((4 if lora else b) * trained if training.reference else 0)
    shown = min(1.0, recipe.log.samples / recipe.train.documents_per_step)
    return {
        "documents": documents * document_tokens * TEXT_BYTES * PACKED,
        # One more while the oldest is not yet removed.
        "checkpoints": (recipe.log.keep_checkpoints + 1) * state,
        "samples": text * shown * TEXT_BYTES * PACKED,
        "model": 4 * trained if lora else b * shape.parameters,
    }
