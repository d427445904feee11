"""What the searcher is shown, and the ids it becomes: one conversation a turn, of a length that does not grow.

A prompt holds the questions, what the last search found, the memory and how many turns are left, in the styles and
layouts of ``prompts.py``: what a group shares stands first. Everything that is not ours (questions, results, the
model's own memory) is made harmless: nothing in it acts as a special token, as a tag of the searcher or as a box, so
that text that is merely copied into a reply is no action.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.errors import UserError
from memtrain.memory.prompts import Prompts
from memtrain.memory.reader import split_chunks
from memtrain.search.base import Found
from memtrain.settings import MemorySettings, SearchSettings
from memtrain.types import SamplingParams

SEARCH_OPEN, SEARCH_CLOSE = "<search>", "</search>"
MEMORY_OPEN, MEMORY_CLOSE = "<memory>", "</memory>"
BOX = "\\boxed{"
BETWEEN = ";"
"""Separates the answers to several questions in one box, as in MEM1."""
NOTHING_FOUND = "Nothing was found."
SEARCH_FAILED = "The search failed; nothing can be said about what it would have found."
MOST_QUERY_CHARS = 500
"""A longer query is cut."""
_TAG = re.compile(r"<(?=/?(?:search|memory)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class SearchTexts:
    """The words of one style. An empty text is left out of the prompt."""

    turn: str
    """Opens a turn; ``{words}`` is the room of the memory in words."""
    last: str
    """Opens the last turn."""
    results: str
    """Heads the results."""
    turn_cue: str
    """Closes a turn; ``{turn}`` of ``{turns}``."""
    last_cue: str
    """Closes the last turn."""
    lost: str
    """Told after a reply without an action."""
    several: str
    """How to answer several questions; ``{box}`` is an example."""


SEARCH_FULL = SearchTexts(
    turn=(
        "You answer what is asked below with the help of a search engine. From one turn to the next you remember "
        "nothing except a memory that you write yourself. Below are what is asked, what your last search found, and "
        "your memory.\n"
        "Think first, in a few sentences. Then write the memory anew between <memory> and </memory>. Carry over what "
        "it already holds and may still be needed. Add what the results say that bears on what is asked: names, dates "
        "and figures, with the words that tie each to the others. Note what is still to be found out. What you leave "
        "out is lost. Stay below {words} words.\n"
        "End with one action: either <search>words to look for</search>, or, once you are sure, the answer alone "
        "inside \\boxed{}."
    ),
    last=(
        "You have been answering what is asked below with the help of a search engine, and can search no more. Below "
        "are what is asked, what your last search found, and the memory you have written. Answer from these. If they "
        "do not settle it, give your best guess. Put the answer alone, without explanation, inside \\boxed{}."
    ),
    results="Results:",
    turn_cue="This is turn {turn} of {turns}.",
    last_cue="Answer:",
    lost="Your last reply ended without an action, so its turn is lost; end with <search>...</search> or \\boxed{...}.",
    several="Answer all of them, in this order, in one box, separated by semicolons: {box}.",
)

SEARCH_COMPACT = SearchTexts(
    turn="",
    last="",
    results="Text:",
    turn_cue=(
        "Rewrite the notes: old and new facts. Then look for more with <search>words</search>, or answer in "
        "\\boxed{}. Turn {turn} of {turns}."
    ),
    last_cue="Answer in \\boxed{}:",
    lost="End with <search>words</search> or \\boxed{}.",
    several="Answers in order: {box}",
)

SEARCH_STYLES = {"full": SEARCH_FULL, "compact": SEARCH_COMPACT}


class SearchPrompts(Prompts):
    """Prompt ids for every turn of the searcher, and those of the reader (recall probes, controls)."""

    def __init__(self, tokenizer: Any, memory: MemorySettings, search: SearchSettings) -> None:
        """Raise :class:`UserError` where the tokenizer's chat template cannot be used."""
        super().__init__(tokenizer, memory)
        self.search = search
        self.search_texts = SEARCH_STYLES[memory.style]

    def sampling(self, temperature: float, top_p: float = 1.0, *, last: bool = False) -> SamplingParams:
        """What a turn asks of the engine: a turn ends with its action. Where a reply begins with thoughts, a search
        that is merely considered there must not end it."""
        ends = () if last or self.format.opens_think else (SEARCH_CLOSE,)
        return SamplingParams(self.search.turn_tokens, temperature, top_p, (*self.stop, *ends))

    def asked(self, questions: Sequence[str]) -> str:
        """The questions of one episode as one text; several are numbered, and say how to answer them."""
        if len(questions) == 1:
            return questions[0]
        example = f"{BETWEEN} ".join(f"answer {number}" for number in range(1, len(questions) + 1))
        lines = [f"{number}. {' '.join(question.split())}" for number, question in enumerate(questions, 1)]
        return "\n".join([*lines, self.search_texts.several.replace("{box}", f"{BOX}{example}}}")])

    def turn(self, questions: Sequence[str], results: str, memory: str, turn: int, lost: bool = False) -> list[int]:
        """Prompt of turn ``turn``, counted from 1: the last one asks for an answer only. ``lost`` tells that the reply
        before held no action."""
        if turn >= self.search.max_turns:
            return self.last_turn(questions, results, memory)
        texts = self.search_texts
        words = max(1, self.search.memory_tokens * 3 // 4)
        opening = texts.turn.replace("{words}", str(words))
        cue = texts.turn_cue.replace("{turns}", str(self.search.max_turns)).replace("{turn}", str(turn))
        parts = (opening, *self._state(questions, results, memory), texts.lost if lost else "", cue)
        return self.format.prompt(self.user.joined(*parts))

    def last_turn(self, questions: Sequence[str], results: str, memory: str) -> list[int]:
        """Prompt of the last turn."""
        texts = self.search_texts
        parts = (texts.last, *self._state(questions, results, memory), texts.last_cue)
        return self.format.prompt(self.user.joined(*parts))

    def shown(self, query: str, found: Found, room: int | None = None) -> str:
        """What a search gave as the next prompt shows it: harmless, at most ``room`` tokens long (default:
        ``search.result_tokens``)."""
        told = [f"Document {place}: {hit.title}\n{hit.text}" for place, hit in enumerate(found.hits, 1)]
        told = told or [SEARCH_FAILED if found.failed else NOTHING_FOUND]
        text = "\n\n".join([f'Search: "{" ".join(query.split())}"', *(part.strip() for part in told)])
        return self._cut(self.format.neutral(harmless(text)), room or self.search.result_tokens)

    def kept(self, memory: str) -> str:
        """A memory as it is carried on: at most ``search.memory_tokens`` long."""
        return self._cut(memory, self.search.memory_tokens)

    def check_window(self, context_tokens: int, tasks: Sequence[Sequence[str]]) -> int:
        """Most tokens a turn on any of these tasks can take, prompt and reply.

        Raises :class:`UserError` naming ``search.result_tokens`` and its like where that is more than the model's
        window. A fortieth of results and memory is kept free: they may grow when they are tokenised in their place.
        """
        search = self.search
        room = (search.result_tokens + search.memory_tokens) * 41 // 40 + search.turn_tokens
        turns = {1, search.max_turns}
        most = room + max(len(self.turn(task, "x", "x", turn, lost=True)) for task in tasks for turn in turns)
        if most > context_tokens:
            raise UserError(
                f"a turn of the searcher can take {most} tokens but the model's window is {context_tokens}; lower "
                f"search.result_tokens (now {search.result_tokens}), search.memory_tokens (now {search.memory_tokens}) "
                f"or search.turn_tokens (now {search.turn_tokens})"
            )
        return most

    def _state(self, questions: Sequence[str], results: str, memory: str) -> tuple[str, str, str]:
        """Questions, results and memory in the order of the layout."""
        # The example of a box is ours: only the questions themselves are made harmless.
        asked = self.user.headed(self.user.texts.question, self.asked([harmless(question) for question in questions]))
        shown = self.user.headed(self.search_texts.results, results) if results else ""
        notes = self.user.notes(harmless(memory))
        return (asked, shown, notes) if self.settings.layout == "section-first" else (asked, notes, shown)

    def _cut(self, text: str, tokens: int) -> str:
        sizes = {"chunk_tokens": tokens, "max_chunks": 1, "chunking": "tokens"}
        [kept] = split_chunks(text, self.tokenizer, self.settings.model_copy(update=sizes)) or [""]
        return kept.strip()


def harmless(text: str) -> str:
    """The text with a space in whatever could pass for a tag of the searcher or for a box."""
    return _TAG.sub("< ", text).replace("\\boxed", "\\ boxed")
