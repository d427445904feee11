"""What vLLM is asked for and what it answers, as plain data: one mapping for both ways to reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.errors import UserError
from memtrain.types import Completion, SamplingParams, StopReason


def sampling_options(params: SamplingParams, seed: int, end_ids: Sequence[int]) -> dict[str, Any]:
    """Options that ``vllm.SamplingParams`` and the body of ``/v1/completions`` name alike.

    Everything that a server may take from the model's generation_config otherwise is said outright. Stop texts are
    looked for in text with its special tokens and stay in the completion, as in the in-process engine.
    """
    return {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop": list(params.stop),
        "stop_token_ids": [] if params.ignore_eos else sorted(end_ids),
        "ignore_eos": params.ignore_eos,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 0,  # of the sampled token alone
    }


def completion(
    token_ids: Sequence[int], logprobs: Sequence[float | None], finish_reason: str | None, where: str
) -> Completion:
    """Check an answer and put it into our words; ``where`` names the sampler in errors.

    A log-prob that is missing raises :class:`UserError`: nothing may stand for it in a ratio.
    """
    kept = [value for value in logprobs[: len(token_ids)] if value is not None]
    if len(kept) != len(token_ids):
        raise UserError(f"{where} gave {len(kept)} log-probs for {len(token_ids)} tokens; use vLLM 0.32 or newer")
    reasons: dict[str | None, StopReason] = {"stop": "stop", "length": "length"}
    if finish_reason not in reasons:
        raise UserError(f"{where} broke a completion off (finish_reason {finish_reason!r}); look at its log")
    return Completion(tuple(token_ids), tuple(float(value) for value in kept), reasons[finish_reason])


def completion_of_answer(answer: Mapping[str, Any], where: str) -> Completion:
    """The one choice of a ``/v1/completions`` answer that was asked for with ``return_token_ids``."""
    choice = answer["choices"][0]
    if choice.get("token_ids") is None or choice.get("logprobs") is None:
        raise UserError(f"{where} returns no token ids with log-probs; it must be a vLLM server, 0.32 or newer")
    return completion(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"], where)


def top_two_gap(answer: Mapping[str, Any]) -> float:
    """Log-prob of the likeliest first token minus that of the next, of an answer with ``logprobs`` = 2 or more."""
    first, second = sorted(answer["choices"][0]["logprobs"]["top_logprobs"][0].values(), reverse=True)[:2]
    return float(first - second)
