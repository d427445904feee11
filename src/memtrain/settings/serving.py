"""Settings of a conversation with bounded memory, and of the server that holds it. They change no training run."""

from __future__ import annotations

from pydantic import Field

from memtrain.settings.base import Section


class ChatSettings(Section):
    """What one turn of a conversation may see and say. The memory's size is ``memory.memory_tokens``."""

    context_tokens: int = Field(2048, ge=64)
    """Tokens of the prompt that a reply is made from: instructions, memory, the last messages, the new one. Filled up
    with as many of the last messages as fit, however long the conversation is."""
    reply_tokens: int = Field(512, ge=1)
    """Most new tokens of a reply; a request may ask for fewer."""
    temperature: float = Field(0.7, ge=0)
    """Of replies, where a request names none."""
    write_temperature: float = Field(0.7, ge=0)
    """Of memory writes, as in training (a small model's greedy memory soon repeats itself); 0 is greedy."""
    drop_loops: bool = True
    """A phrase that a written memory repeats three times or more in a row is kept once: a small model that is caught
    in a loop would fill the memory with it for good."""


class ServeSettings(Section):
    """Limits of ``memtrain serve``."""

    max_body_bytes: int = Field(16 * 2**20, ge=1024)
    """Longest body of a request."""
    request_seconds: float = Field(1800.0, gt=0)
    """A request that takes longer is stopped; nothing of it is kept."""
    requests_per_minute: int = Field(600, ge=1)
    """Of one owner."""
    concurrent_requests: int = Field(256, ge=1)
    """Under way at the same time, of all owners."""
    sessions_per_owner: int = Field(100_000, ge=1)
    """Conversations kept."""
    expire_days: float = Field(0.0, ge=0)
    """A conversation is deleted so long after its last turn; 0: never."""
    keep_turns: int = Field(1000, ge=1)
    """Earlier memories of a conversation that are kept, for export and for going back to."""
    memory_chars: int = Field(65_536, ge=1)
    """Longest memory that an owner may write by hand."""
