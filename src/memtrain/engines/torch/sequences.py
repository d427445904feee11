"""What a sampler is asked for, and what it has drawn of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from memtrain.types import Completion, SamplingParams


@dataclass(frozen=True)
class Request:
    """One completion that is wanted."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int | None = None
    """Of the request's own random numbers; None takes those of the batch's generator."""
    on_token: Callable[[int], None] | None = field(default=None, compare=False)
    """Called with each token as it is drawn, in the thread that samples."""


@dataclass
class RunningSequence:
    """A request and what has been sampled for it."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False
    own_draws: list[float] = field(default_factory=list)
    """One number a token, where the request has a seed."""

    @property
    def body(self) -> tuple[int, ...]:
        """The prompt without its last token, which is fed in the first decoding step."""
        return self.request.prompt_ids[:-1]

    @property
    def completion(self) -> Completion:
        return Completion(tuple(self.tokens), tuple(self.logprobs), "stop" if self.stopped else "length")
