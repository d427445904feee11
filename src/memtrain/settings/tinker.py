"""Settings of the Tinker engine: a model that lives on a server which speaks the Tinker API.

The address and the key are the environment's (``TINKER_BASE_URL``, ``TINKER_API_KEY``); a key is no setting, so that
none is ever written into a recipe or a run folder.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from memtrain.settings.base import Section


class TinkerSettings(Section):
    """Server, losses, requests."""

    base_url: str = ""
    """Address of the server, for example ``http://127.0.0.1:8000``; empty: ``TINKER_BASE_URL`` of the environment."""
    base_model: str = ""
    """The model's name on the server; empty: the only one that it serves, else ``model.name``."""
    loss: Literal["ppo", "importance_sampling", "cispo"] = "ppo"
    """Loss of policy rows: ppo is the clipped ratio of the in-process engine, the others do without its clip or put it
    on the weight alone. With ``old_logprobs = "recompute"`` and one update a batch all three are the same."""
    kl_penalty: Literal["k3", "k1"] = "k3"
    """What ``train.kl_coef`` takes off a token's advantage, the API having no KL loss: k3: 1 - p_ref / p, whose
    gradient is that of the in-process engine's KL term; k1: log p - log p_ref, as in tinker-cookbook."""
    reduction: Literal["auto", "sum", "sequence-mean"] = "auto"
    """How the server adds up token losses. sum: the Tinker API's; sequence-mean: mean over a sequence, then over
    sequences (SkyRL's JAX backend), which is undone here. auto: measured before the first update."""
    train_unembed: bool = False
    """Adapt the output head too (SkyRL never does; the in-process engine does not)."""
    context_tokens: int = Field(0, ge=0)
    """Longest prompt plus completion; 0: what the server says, else the model's own window."""
    max_requests: int = Field(64, ge=1)
    """Most sampling requests that are under way at a time."""
    rows_multiple: int = Field(1, ge=1)
    """Fill requests up to a multiple of so many rows, with rows that train nothing. A server that compiles for every
    batch shape (SkyRL under JAX: its ``train_micro_batch_size``) then compiles once."""
    patience: float = Field(600.0, gt=0)
    """Seconds without a server after which the run ends; until then it waits and goes on."""
    request_timeout: float = Field(3600.0, gt=0)
    """Longest time for one request, a server's first compilation included."""

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError('must begin with http:// or https://, for example "http://127.0.0.1:8000"')
        return url.rstrip("/")
