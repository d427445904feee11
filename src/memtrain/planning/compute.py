"""Arithmetic by formula, in FLOPs (a multiply and an add are two); what is recomputed is counted, as it takes time.

With W the weights of the body's linear layers, V x d those of the output head, L layers, H heads of size D:

* a token through the body: 2 W, and through the head where logits are wanted: 2 V d;
* attention of a token to c tokens, itself included: 4 L H D c (scores, then the weighted sum; grouped heads save
  memory, not arithmetic);
* backward: 2 W for the gradient by input, 2 W for that by weight, which frozen weights (LoRA) do without; attention
  twice its forward;
* the head's logits are made again in the backward pass; gradient checkpointing runs the body's forward once more, but
  for each layer's last projection, whose output nobody asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

from memtrain.planning.models import ModelShape
from memtrain.planning.work import DecodeBatch, Passes, Work


@dataclass(frozen=True)
class Training:
    """How a recipe trains, as far as arithmetic and memory depend on it."""

    lora_rank: int = 0
    checkpointing: bool = False
    reference: bool = False
    """Whether a second copy of the trained weights is kept for the KL term."""
    weight_bytes: int = 2
    """Of a weight as the model computes: 2 in bfloat16, 4 in float32."""


def forward(shape: ModelShape, passes: Passes) -> float:
    """FLOPs of forward passes."""
    attention = 4.0 * shape.layers * shape.attention_width * passes.contexts
    return 2.0 * shape.body * passes.tokens + 2.0 * shape.head * passes.logits + attention


def backward(shape: ModelShape, passes: Passes, training: Training) -> float:
    """FLOPs of what training adds to the forward pass."""
    whole = training.lora_rank == 0
    body = 2.0 * shape.body * passes.tokens
    head = 2.0 * shape.head * passes.logits
    attention = 4.0 * shape.layers * shape.attention_width * passes.contexts
    flops = body * (2 if whole else 1) + head * (3 if whole else 2) + 2 * attention
    if training.checkpointing:
        last = 2.0 * shape.layers * shape.intermediate * shape.hidden * passes.tokens
        flops += body - last + attention
    if not whole:  # the adapter: forward, gradient by input and by weight
        flops += 6.0 * shape.lora_parameters(training.lora_rank) * passes.tokens
    return flops


def update(shape: ModelShape, passes: Passes, training: Training) -> float:
    """FLOPs of training: forward and backward."""
    return forward(shape, passes) + backward(shape, passes, training)


def decoding(shape: ModelShape, batch: DecodeBatch) -> float:
    """FLOPs of a batch of completions, logits at every token."""
    return forward(shape, Passes(tokens=batch.tokens, contexts=batch.contexts, logits=batch.tokens))


def by_phase(shape: ModelShape, work: Work, training: Training) -> dict[str, float]:
    """FLOPs of each kind of work."""
    return {
        "prefill": forward(shape, work.prefill),
        "decode": sum(decoding(shape, batch) * batch.repeat for batch in work.decode),
        "score": forward(shape, work.score),
        "reference": forward(shape, work.reference),
        "train": update(shape, work.train, training),
    }
