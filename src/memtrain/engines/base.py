"""The engine protocol: what turns token ids into token ids, and rows into a weight update.

These are the operations of the Tinker API (sample, forward, forward_backward + optim_step, save_state), so a remote
trainer is a thin adapter. Everything above this file (agents, tasks, trainer, evaluation) sees only this protocol and
stays the same whatever runs below. All calls are coroutines: an episode is straight-line code that awaits, and
batching is the engine's business. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from memtrain.types import Completion, Row, SamplingParams

Weights = Literal["policy", "reference"]
ProgressCallback = Callable[[str, int, int], None]
"""Called as ``(what, done, total)`` while an engine works, in its own units (sequences)."""


@dataclass(frozen=True)
class LossConfig:
    """The joint objective (MemTrain eq. 6 with the choices of ``docs``); see ``memtrain/rl/loss.py``."""

    clip_low: float = 0.2
    """Ratio is clipped at ``1 - clip_low`` (PPO; DAPO names the two sides apart)."""
    clip_high: float = 0.2
    """Ratio is clipped at ``1 + clip_high``."""
    kl_coef: float = 1e-3
    """Weight of the low-variance KL estimate to the start model; 0 skips the reference pass."""
    normaliser: Literal["conversations", "tokens"] = "conversations"
    """Sum over policy tokens is divided by the number of policy rows (paper) or of their tokens (released code)."""
    cross_entropy_coef: float = 1.0
    """Weight of the mean cross-entropy per token over ``cross_entropy`` rows."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """Denominator of the ratio: the policy before this update, or the log-probs the sampler reported."""
    temperature: float = 1.0
    """Sampling temperature: log-probs of policy rows are those of the tempered distribution, as sampled."""
    importance_sampling_cap: float = 0.0
    """Truncated importance sampling: largest weight of a policy token for a sampler that is not quite the policy; 0 is
    off."""


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW; one call of ``Engine.update`` is one optimiser step."""

    lr: float = 1e-6
    """Learning rate of this step (schedules are the trainer's)."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Moment decay rates."""
    eps: float = 1e-8
    """Added to the denominator."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that the project relies on."""

    chat_template: Any
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Engine(Protocol):
    """What every engine can do. What the user can mend is raised as :class:`memtrain.errors.UserError`."""

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer (transformers API)."""
        ...

    @property
    def context_tokens(self) -> int:
        """Longest prompt plus completion the model takes, in tokens."""
        ...

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """Draw ``n`` completions of one prompt."""
        ...

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], weights: Weights = "policy"
    ) -> list[float]:
        """Log-prob of every completion token given what stands before it, at temperature 1."""
        ...

    async def update(self, rows: Sequence[Row], loss: LossConfig, optimiser: OptimiserConfig) -> dict[str, float]:
        """One optimiser step on the rows; returns scalar metrics (loss, grad_norm, kl, clip_fraction...)."""
        ...

    async def reseed(self, seed: str) -> None:
        """Start the sampler's randomness anew from a text: steps seeded so depend on nothing before them."""
        ...

    async def anchor(self) -> None:
        """Make the policy, as it is now, the reference that ``kl_coef`` and ``score(..., "reference")`` speak of."""
        ...

    async def reset_optimiser(self) -> None:
        """Forget moments: those of one objective mislead the first steps of another."""
        ...

    async def save(self, folder: Path) -> None:
        """Write weights, optimiser and random state into an existing empty folder (safetensors and JSON only)."""
        ...

    async def load(self, folder: Path) -> None:
        """Restore what :meth:`save` wrote; afterwards the engine continues to the same numbers (on CPU)."""
        ...

    async def export(self, folder: Path) -> None:
        """Write the policy as a folder that transformers (or peft) loads: weights, config, tokenizer."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that tells each token when it is drawn."""

    async def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams, on_token: Callable[[int], None]
    ) -> Completion:
        """Draw one completion; ``on_token`` is called in the event loop, in order, before the completion is there.

        Cancelling the task that waits frees what the completion took at the sampler's next step.
        """
        ...
