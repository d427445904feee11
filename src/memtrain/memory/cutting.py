"""Cutting texts to token budgets by counting alone, for models whose tokenizer is elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable

Count = Callable[[str], int]
_BORDERS = (re.compile(r"\n[ \t]*\n\s*"), re.compile(r"(?<=[.!?。！？])\s+|\n"), re.compile(r"\s+"))
"""Where a text is cut best: between paragraphs, sentences, words."""
LATEST_SHARE = 0.5
"""A border is taken if the piece before it is at least this share of what would fit."""


def split_by_count(text: str, tokens: int, count: Count) -> list[str]:
    """Cut a text into pieces of at most ``tokens``; joined they are the text again. A blank text gives none.

    Cuts fall between paragraphs where one ends in the second half of a piece, else between sentences, else words.
    """
    pieces: list[str] = []
    begin, said = 0, len(text.rstrip())
    while begin < said:
        end = begin + _fitting_head(text, begin, tokens, count)
        if end < len(text):
            end = _border(text, begin, end)
        if end >= said:
            end = len(text)
        pieces.append(text[begin:end])
        begin = end
    return pieces


def last_tokens(text: str, tokens: int, count: Count) -> str:
    """The end of a text, at most ``tokens`` long with the "..." that marks a cut; "" where nothing fits."""
    text = text.strip()
    if tokens < 1:
        return ""
    if count(text) <= tokens:
        return text
    low, high = 0, len(text)  # the largest part that fits is longer than low and not longer than high
    while high - low > 1:
        middle = (low + high) // 2
        if count(f"...{text[-middle:]}") <= tokens:
            low = middle
        else:
            high = middle
    return f"...{text[-low:]}" if low else ""


def _fitting_head(text: str, begin: int, tokens: int, count: Count) -> int:
    """Characters from ``begin`` on that fit; at least one, so that a character of many tokens goes by."""
    guess = min(len(text) - begin, tokens * 4)
    low, high = 0, 0
    while not high:  # widen until it no longer fits or the text ends
        if count(text[begin : begin + guess]) <= tokens:
            if begin + guess >= len(text):
                return guess
            low, guess = guess, guess * 2
        else:
            high = guess
    while high - low > max(1, tokens // 50):
        middle = (low + high) // 2
        if count(text[begin : begin + middle]) <= tokens:
            low = middle
        else:
            high = middle
    return max(low, 1)


def _border(text: str, begin: int, end: int) -> int:
    """The last good border in the later part of ``[begin, end]``, else ``end``."""
    start = begin + max(1, int((end - begin) * LATEST_SHARE))
    for border in _BORDERS:
        found = [match.end() for match in border.finditer(text, start, end) if match.end() > begin]
        if found:
            return found[-1]
    return end
