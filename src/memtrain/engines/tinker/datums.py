"""Rows as the Tinker API wants them: a sequence without its last token, and per position what the next one is worth.

Plain lists, so that they can be checked by hand; :meth:`TokenRow.datum` makes the client library's type of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.types import Row

FILLER = (0, 0)
"""Tokens of a row that only fills a request up: one position, worth nothing."""


@dataclass(frozen=True)
class TokenRow:
    """One sequence of N + 1 tokens; all lists have N entries, zero over the prompt."""

    inputs: tuple[int, ...]
    """Tokens 0 .. N - 1."""
    targets: tuple[int, ...]
    """Tokens 1 .. N: position i predicts target i."""
    logprobs: tuple[float, ...] = ()
    """Denominator of the ratio (policy losses)."""
    advantages: tuple[float, ...] = ()
    """What each target is worth (policy losses): normaliser and row weight are in it."""
    weights: tuple[float, ...] = ()
    """Weight of each target (``cross_entropy``)."""

    def datum(self) -> Any:
        """The row as ``tinker.types.Datum``."""
        from tinker import types

        def floats(values: Sequence[float]) -> Any:
            return types.TensorData(data=list(values), dtype="float32", shape=[len(values)])

        targets = types.TensorData(data=list(self.targets), dtype="int64", shape=[len(self.targets)])
        inputs: dict[str, Any] = {"target_tokens": targets}
        if self.weights:
            inputs["weights"] = floats(self.weights)
        else:
            inputs |= {"logprobs": floats(self.logprobs), "advantages": floats(self.advantages)}
        return types.Datum(model_input=types.ModelInput.from_ints(list(self.inputs)), loss_fn_inputs=inputs)


def policy_row(row: Row, old: Sequence[float], advantages: Sequence[float]) -> TokenRow:
    """A policy row; ``old`` and ``advantages`` have one value a completion token."""
    inputs, targets, lead = _shifted(row.prompt_ids, row.completion_ids)
    return TokenRow(inputs, targets, lead + tuple(old), lead + tuple(advantages))


def weighted_row(prompt_ids: Sequence[int], completion_ids: Sequence[int], weight: float) -> TokenRow:
    """A sequence whose completion tokens all weigh ``weight`` in ``cross_entropy``."""
    inputs, targets, lead = _shifted(prompt_ids, completion_ids)
    return TokenRow(inputs, targets, weights=lead + (weight,) * len(completion_ids))


def fill_up(rows: Sequence[TokenRow], multiple: int) -> list[TokenRow]:
    """The rows and as many rows worth nothing as make their number a multiple."""
    missing = -len(rows) % multiple
    if not missing:
        return list(rows)
    zero = (0.0,) * (len(FILLER) - 1)
    filler = TokenRow(FILLER[:-1], FILLER[1:], *((), (), zero) if rows[0].weights else (zero, zero))
    return [*rows, *[filler] * missing]


def completion_values(values: Sequence[float], n_completion: int) -> list[float]:
    """Of N per-position values those of the completion: the last ones."""
    return [float(value) for value in values[len(values) - n_completion :]]


def _shifted(prompt: Sequence[int], completion: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], tuple]:
    tokens = (*prompt, *completion)
    return tokens[:-1], tokens[1:], (0.0,) * (len(prompt) - 1)
