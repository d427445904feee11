"""Which of the messages that a client sends are new to its session.

Some clients send only what is new, others the whole conversation every time. A session keeps a hash over the messages
it has seen; where the beginning of a request hashes to it, only the rest is new. System messages do not count: they are
instructions of the turn, and clients change them as they like. White space does not count either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from memtrain.memory.text_model import Message

MOST_TRIED = 64
"""Beginnings of a request that are looked up among a session's earlier turns, longest first."""


def extend(history: str, messages: Sequence[Message]) -> str:
    """The hash of a history that goes on with these messages; ``""`` is the empty history."""
    for message in messages:
        if message.role != "system":
            text = " ".join(message.content.split())
            history = hashlib.sha256(f"{history}\n{message.role}\n{text}".encode()).hexdigest()
    return history


def beginnings(dialogue: Sequence[Message]) -> list[tuple[int, str]]:
    """``(n, hash of the first n messages)`` for every beginning that ends with a reply, longest first."""
    found, history = [], ""
    for n, message in enumerate(dialogue, start=1):
        history = extend(history, [message])
        if message.role == "assistant":
            found.append((n, history))
    return found[::-1]


def overlap(recent: Sequence[Message], dialogue: Sequence[Message]) -> int:
    """How many messages at the start of ``dialogue`` are the last of ``recent``, a reply being the very last.

    For clients that send a window of the conversation: its beginning is gone, so no hash fits.
    """
    seen = [_key(message) for message in recent if message.role != "system"]
    sent = [_key(message) for message in dialogue]
    for n in range(min(len(seen), len(sent) - 1), 0, -1):
        if sent[n - 1][0] == "assistant" and seen[len(seen) - n :] == sent[:n]:
            return n
    return 0


def _key(message: Message) -> tuple[str, str]:
    return message.role, " ".join(message.content.split())
