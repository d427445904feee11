"""A flat prompt (instructions, a long text, a question, all in one) cut into what is read and what is asked.

Benchmarks hand a model one string. The rule here looks at nothing but that string: the end of the prompt is the
question, a short beginning joins it, and what stands between is read in chunks. Nothing here imports torch.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from memtrain.errors import UserError

QUESTION_PATTERN = (
    r"(?m)^[ \t]*(?:(?:Question|Query|Key|Dialogue|问题)(?: \d+)?[:：]"
    r"|The following is an abstract\.|下面是一个摘要|Which func?tion has deliberate error"
    r"|What is the correct answer to this question)"
)
"""How questions begin in RULER, LongBench (1 and 2), BABILong and InfiniteBench where it is not in the last line."""
_CUE = re.compile(r"(?:\S+ ){0,7}\S*[:：]")
"""A short line that asks for the answer, or heads a list: it needs the line above it."""
_OPTIONS = re.compile(r"(?:\A|\n)[ \t]*\(?A[.):].*(?:\n[ \t]*\(?[B-J][.):].*)+\Z")
"""Choices at the end of a prompt, a line each, from A on; numbered paragraphs of a text are none."""
_OPTIONS_CHARS = 20_000
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class SplitRule:
    """How a flat prompt becomes a text and a question."""

    question_tokens: int = 512
    """Most tokens of the prompt's end that are the question."""
    head_tokens: int = 128
    """Most tokens of the prompt's first paragraph, or its first line, that join the question; 0 for none."""
    question_pattern: str = QUESTION_PATTERN
    """Regex: the question begins at its last match; where that is none, or too long, it is the last line."""

    def __post_init__(self) -> None:
        if self.question_tokens < 1 or self.head_tokens < 0:
            raise UserError("question_tokens must be at least 1 and head_tokens at least 0")
        try:
            re.compile(self.question_pattern)
        except re.error as error:
            raise UserError(f"question_pattern {self.question_pattern!r} is no regular expression: {error}") from None


@dataclass(frozen=True)
class Split:
    """A prompt, cut."""

    text: str
    """What is read in chunks; blank where the question is the whole prompt."""
    question: str
    """The head and the end of the prompt: what is shown with every chunk, and with the last memory."""


def split_prompt(prompt: str, count: Callable[[str], int], rule: SplitRule) -> Split:
    """Cut a prompt: head + text + end -> the text, and a question made of head and end. ``count`` counts tokens.

    The end begins at the last match of ``question_pattern`` if it then has at most ``question_tokens`` tokens. Else it
    is the last line, and lines above it for as long as the topmost are options (from "A. ..." on) or a short line that
    ends in a colon ("Answer:"); of a longer one, its last ``question_tokens`` tokens. The head is the first paragraph,
    or else the first line, of the rest, where it has at most ``head_tokens`` tokens and is not all of the rest.
    """
    prompt = prompt.rstrip()
    starts = [match.start() for match in re.finditer(rule.question_pattern, prompt)]
    begin = starts[-1] if starts else -1
    if begin < 0 or count(prompt[begin:]) > rule.question_tokens:
        begin = _last_lines(prompt)
        if count(prompt[begin:]) > rule.question_tokens:
            begin = _last_tokens(prompt, begin, count, rule.question_tokens)
    rest, end = prompt[:begin].strip(), prompt[begin:].strip()
    for border in (_BLANK_LINE.search(rest), re.search("\n", rest)):
        head = rest[: border.start()].strip() if border else ""
        if head and count(head) <= rule.head_tokens:
            return Split(text=rest[len(head) :].strip(), question=f"{head}\n\n{end}")
    return Split(text=rest, question=end)


def _last_lines(prompt: str) -> int:
    """Where the last line begins that can stand by itself."""
    while prompt:
        begin = prompt.rfind("\n") + 1
        options = _OPTIONS.search(prompt, max(0, len(prompt) - _OPTIONS_CHARS))
        if options:
            begin = options.start()
        elif not _CUE.fullmatch(prompt[begin:].strip()):
            return begin
        prompt = prompt[:begin].rstrip()
    return 0


def _last_tokens(prompt: str, begin: int, count: Callable[[str], int], tokens: int) -> int:
    """Where the last ``tokens`` tokens begin; at the next word where there are words."""
    places = range(max(begin, len(prompt) - 40 * tokens), len(prompt))
    begin = places[bisect_left(places, True, key=lambda place: count(prompt[place:]) <= tokens)]
    space = re.compile(r"\s").search(prompt, max(0, begin - 1), begin + 40)
    return space.end() if space else begin
