"""How much arithmetic the work needs, by formula; what is spent on top of it is not credited.

Multiply and add count as two. With W the weights of the body's linear layers, V x d those of the output head, L layers,
H heads of size D:

* a token through the body: 2 W, and through the head where logits are wanted: 2 V d;
* attention of a token to c earlier ones: 4 L H D c (scores, then the weighted sum);
* training: three times the forward pass (forward, gradient by input, gradient by weight); passes that an implementation
  runs again (recomputed logits, checkpoints) are its own loss.

For us every distinct prefix counts once, as it is computed once: the share of the machine's limit is not raised by work
that was saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.engines.prefix_tree import build_prefix_tree


@dataclass(frozen=True)
class ModelSize:
    """What the formulas need to know of a decoder."""

    body: int
    """W: weights of all linear layers below the head."""
    head: int
    """V x d."""
    layers: int
    attention_width: int
    """H x D."""

    @classmethod
    def of(cls, model: Any) -> ModelSize:
        """Counted from a transformers model."""
        import torch

        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        linear = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(sum(m.weight.numel() for m in linear), head.weight.numel(), config.num_hidden_layers, heads * size)

    def attention(self, contexts: float) -> float:
        """FLOPs of attention, ``contexts`` summed over tokens."""
        return 4.0 * self.layers * self.attention_width * contexts


@dataclass(frozen=True)
class Flops:
    """By kind of product."""

    body: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        return self.body + self.head + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.body + other.body, self.head + other.head, self.attention + other.attention)

    def times(self, factor: float) -> Flops:
        """Scaled."""
        return Flops(self.body * factor, self.head * factor, self.attention * factor)


def forward(size: ModelSize, rows: Sequence[Sequence[int]], logits: int, share: bool = True) -> Flops:
    """One pass over the distinct prefixes of the rows (over every row by itself without ``share``)."""
    if share:
        spans = [(segment.start, len(segment.tokens)) for segment in build_prefix_tree(rows).segments]
    else:
        spans = [(0, len(row)) for row in rows]
    tokens = sum(length for _, length in spans)
    contexts = sum(length * start + length * (length + 1) / 2 for start, length in spans)
    return Flops(2.0 * size.body * tokens, 2.0 * size.head * logits, size.attention(contexts))


def prefill(size: ModelSize, prompts: Sequence[Sequence[int]], share: bool = True) -> Flops:
    """The prompts without their last tokens, which the first decoding step takes."""
    return forward(size, [prompt[:-1] for prompt in prompts], 0, share)


def decoding(size: ModelSize, prompts: Sequence[Sequence[int]], new_tokens: int) -> Flops:
    """``new_tokens`` steps of one token for every prompt, logits every time."""
    steps = len(prompts) * new_tokens
    contexts = sum(len(prompt) * new_tokens + new_tokens * (new_tokens - 1) / 2 for prompt in prompts)
    return Flops(2.0 * size.body * steps, 2.0 * size.head * steps, size.attention(contexts))


def update(size: ModelSize, rows: Sequence[tuple[Sequence[int], int]], reference: bool, share: bool = True) -> Flops:
    """Training on rows of (all tokens, completion length), and the reference pass of the KL term."""
    logits = sum(length for _, length in rows)
    once = forward(size, [tokens[:-1] for tokens, _ in rows], logits, share)
    return once.times(4.0 if reference else 3.0)
