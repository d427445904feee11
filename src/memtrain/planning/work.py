"""How many tokens of each kind a stage makes the model work on, counted the way the engine counts them.

Four kinds: *prefilled* (prompts before their first new token), *decoded* (new tokens), *scored* (log-probs of known
answers) and *trained* (the joint update; the reference pass of the KL term runs over the same tokens once more). Each
is counted twice: ``separate`` sums over sequences, ``tokens`` counts every common prefix once, by the engine's own
prefix tree and its own cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from memtrain.engines.base import LossConfig
from memtrain.engines.prefix_tree import build_prefix_tree, pack_by_budget
from memtrain.types import Row

PREFILL_TOKENS = 16_384
"""Most tokens in one prefill pass, as in ``engines/torch/prefill.py``."""
MIN_SHARED = 16
"""Prefixes shorter than this are copied, not shared, as in ``engines/torch/sampling.py``."""

Ids = Sequence[int]


@dataclass(frozen=True)
class Passes:
    """Tokens that go through the model in forward passes."""

    tokens: float = 0.0
    """Distinct ones: a shared prefix counts once."""
    separate: float = 0.0
    """Summed over sequences: what it would be without sharing."""
    contexts: float = 0.0
    """Summed over the distinct tokens: to how many tokens each attends, itself included."""
    logits: float = 0.0
    """Positions whose logits are wanted."""
    passes: float = 0.0
    """How many passes, one after the other."""

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, factor: float) -> Passes:
        """Scaled."""
        return Passes(*(getattr(self, f.name) * factor for f in fields(self)))

    @classmethod
    def of(cls, rows: Sequence[Ids], logits: float = 0.0, share: bool = True, separate: float | None = None) -> Passes:
        """One pass over the distinct prefixes of the rows (over every row by itself without ``share``)."""
        if share:
            spans = [(s.start, len(s.tokens)) for s in build_prefix_tree(rows, MIN_SHARED).segments]
        else:
            spans = [(0, len(row)) for row in rows]
        return cls(
            tokens=sum(length for _, length in spans),
            separate=sum(len(row) for row in rows) if separate is None else separate,
            contexts=sum(length * start + length * (length + 1) / 2 for start, length in spans),
            logits=logits,
            passes=1.0,
        )


@dataclass(frozen=True)
class DecodeBatch:
    """Completions that are drawn together."""

    sequences: float
    tokens: float
    """New tokens of all sequences."""
    longest: float
    """New tokens of the longest."""
    contexts: float
    """Summed over new tokens: to how many tokens each attends, every sequence by itself."""
    cached: float
    """Prompt tokens whose keys and values are kept, shared prefixes once."""
    room: float
    """New tokens that each sequence must have room for."""
    repeat: float = 1.0
    """How many batches like this there are."""

    def widened(self, factor: float) -> DecodeBatch:
        """So many times as many sequences of the same kind."""
        names = ("sequences", "tokens", "contexts", "cached")
        return replace(self, **{name: getattr(self, name) * factor for name in names})


@dataclass(frozen=True)
class Work:
    """What a stage makes the model do."""

    prefill: Passes = Passes()
    decode: tuple[DecodeBatch, ...] = ()
    score: Passes = Passes()
    reference: Passes = Passes()
    train: Passes = Passes()
    rows: float = 0.0
    """Training sequences."""
    updates: float = 0.0
    """Optimiser steps."""
    largest_pass: float = 0.0
    """Most tokens in one micro-batch of training."""
    text_tokens: float = 0.0
    """Tokens of all prompts and completions drawn, as the samples file would hold them."""

    @property
    def decoded(self) -> float:
        """New tokens."""
        return sum(batch.tokens * batch.repeat for batch in self.decode)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.prefill + other.prefill,
            self.decode + other.decode,
            self.score + other.score,
            self.reference + other.reference,
            self.train + other.train,
            self.rows + other.rows,
            self.updates + other.updates,
            max(self.largest_pass, other.largest_pass),
            self.text_tokens + other.text_tokens,
        )

    def times(self, factor: float) -> Work:
        """The same so many times, one after the other."""
        decode = tuple(replace(batch, repeat=batch.repeat * factor) for batch in self.decode)
        return self._scaled(factor, decode, self.updates * factor)

    def widened(self, factor: float) -> Work:
        """The same for so many times as many documents at once."""
        return self._scaled(factor, tuple(batch.widened(factor) for batch in self.decode), self.updates)

    def _scaled(self, factor: float, decode: tuple[DecodeBatch, ...], updates: float) -> Work:
        passes = (part.times(factor) for part in (self.prefill, self.score, self.reference, self.train))
        prefill, score, reference, train = passes
        rows, text = self.rows * factor, self.text_tokens * factor
        return Work(prefill, decode, score, reference, train, rows, updates, self.largest_pass, text)

    @classmethod
    def total(cls, parts: Sequence[Work]) -> Work:
        """Sum; batches of decoding stay apart."""
        whole = cls()
        for part in parts:
            whole += part
        return whole


def sampled(requests: Sequence[tuple[Ids, int, int]]) -> Work:
    """One batch of completions: (prompt, new tokens, most new tokens) each.

    A prompt's last token is fed in the first decoding step, so it is decoded, not prefilled.
    """
    bodies = [prompt[:-1] for prompt, _, _ in requests]
    prefill = Passes()
    for numbers in pack_by_budget(bodies, PREFILL_TOKENS, MIN_SHARED):
        prefill += Passes.of([bodies[number] for number in numbers])
    batch = DecodeBatch(
        sequences=len(requests),
        tokens=sum(new for _, new, _ in requests),
        longest=max(new for _, new, _ in requests),
        contexts=sum(len(prompt) * new + new * (new - 1) / 2 for prompt, new, _ in requests),
        cached=prefill.tokens,
        room=max(most for _, _, most in requests) + 1,
    )
    text = sum(len(prompt) + new for prompt, new, _ in requests)
    return Work(prefill=prefill, decode=(batch,), text_tokens=text)


def scored(requests: Sequence[tuple[Ids, Ids]], budget: int) -> Work:
    """One batch of log-probs of known completions, in passes of at most ``budget`` tokens."""
    rows = list(dict.fromkeys((tuple(prompt), tuple(completion)) for prompt, completion in requests))
    passes, _ = _packed(rows, budget)
    return Work(score=replace(passes, separate=sum(max(0, len(p) + len(c) - 1) for p, c in requests)))


def trained(rows: Sequence[Row], loss: LossConfig, budget: int) -> Work:
    """One joint update in micro-batches of at most ``budget`` tokens, and the reference pass of its KL term."""
    rows = [row for row in rows if row.completion_ids or row.loss == "policy"]
    if not any(row.completion_ids for row in rows):
        return Work()
    policy = [row.loss == "policy" for row in rows]
    pairs = [(row.prompt_ids, row.completion_ids) for row in rows]
    passes, largest = _packed(pairs, budget)
    whole = replace(passes, separate=sum(len(p) + len(c) for p, c in pairs))
    reference = Passes()
    if loss.kl_coef > 0 and any(policy):
        reference, _ = _packed(pairs, budget, policy)
    return Work(train=whole, reference=reference, rows=len(rows), updates=1, largest_pass=largest)


def _packed(pairs: Sequence[tuple[Ids, Ids]], budget: int, only: Sequence[bool] | None = None) -> tuple[Passes, float]:
    """All micro-batches, or those that hold a row of ``only``; and the tokens of the largest."""
    sequences = [(*p, *c)[:-1] if c else () for p, c in pairs]
    whole, largest = Passes(), 0.0
    for numbers in pack_by_budget(sequences, budget, MIN_SHARED):
        if only is None or any(only[number] for number in numbers):
            logits = sum(len(pairs[number][1]) for number in numbers)
            part = Passes.of([sequences[number] for number in numbers], logits)
            whole, largest = whole + part, max(largest, part.tokens)
    return whole, largest
