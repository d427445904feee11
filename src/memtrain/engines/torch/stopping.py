"""When a completion has reached a stop text."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds out whether a completion has just reached a stop text, without decoding after every token."""

    def __init__(self, tokenizer: object, stop: tuple[str, ...]):
        self._tokenizer, self._stop = tokenizer, stop
        # A token may be a single byte; the margin is for one that began before the stop text.
        self._tail = max(len(text.encode()) for text in stop) + 4
        self._last = {text[-1] for text in stop}
        self._may_end: dict[int, bool] = {}

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the newest token completes a stop text."""
        token = tokens[-1]
        if token not in self._may_end:
            text = self._decode([token])
            # Blanks may be dropped and broken characters replaced when a token is decoded alone.
            sure = text.strip() == text and text and "\ufffd" not in text and not any(c.isspace() for c in self._last)
            self._may_end[token] = not sure or any(c in text for c in self._last)
        return self._may_end[token] and any(text in self._decode(tokens[-self._tail :]) for text in self._stop)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)  # type: ignore[attr-defined]
