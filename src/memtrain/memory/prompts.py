"""The ids that prompts and known answers become, for one tokenizer; what they say is in ``texts.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.errors import UserError
from memtrain.memory.chat_format import ChatFormat
from memtrain.memory.texts import NO_MEMORY, UserTexts
from memtrain.recipe import MemorySettings
from memtrain.types import RECONSTRUCTION_QUESTION

__all__ = ["NO_MEMORY", "QUESTION", "Prompts", "Target"]

QUESTION = RECONSTRUCTION_QUESTION


@dataclass(frozen=True)
class Target:
    """A known answer as completion ids, in three parts that are tokenised apart."""

    prefix_ids: tuple[int, ...]
    """``\\boxed{`` (after the end of the thinking block where the prompt opens one)."""
    answer_ids: tuple[int, ...]
    """The answer."""
    suffix_ids: tuple[int, ...]
    """``}``, then the end token where the tokenizer has one."""
    n_end: int = 1
    """How many ids at the end of ``suffix_ids`` are the end token."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole completion."""
        return self.prefix_ids + self.answer_ids + self.suffix_ids

    @property
    def scored(self) -> slice:
        """Where in :attr:`ids` the answer and its closing ``}`` stand.

        The brace belongs to the event "the answer is exactly this": without it a memory that says ``Paris Commune``
        would be paid in full for ``Paris``.
        """
        return slice(len(self.prefix_ids), len(self.ids) - self.n_end)


class Prompts:
    """Prompt ids for every kind of turn, for one tokenizer and one set of memory settings."""

    def __init__(self, tokenizer: Any, settings: MemorySettings) -> None:
        """Raise :class:`UserError` where the tokenizer's chat template cannot be used."""
        self.tokenizer = tokenizer
        self.settings = settings
        self.format = ChatFormat(tokenizer)
        self.user = UserTexts(settings, self.format.neutral)
        self.stop: tuple[str, ...] = self.format.stop
        """Stop strings for sampling; empty with a chat template."""

    def write(self, question: str, chunk: str, memory: str) -> list[int]:
        """Prompt of a memory update: m[t] from (question, chunk, m[t-1])."""
        return self.format.prompt(self.user.write(question, chunk, memory))

    def answer(self, question: str, memory: str) -> list[int]:
        """Prompt of the last answer, from the memory alone."""
        return self.format.prompt(self.user.answer(question, memory))

    def recall(self, memory: str, masked_chunk: str) -> list[int]:
        """Prompt of a recall probe: what ``[TARGET]`` stands for, from one memory and one masked chunk."""
        return self.format.prompt(self.user.recall(memory, masked_chunk))

    def recall_without_memory(self, masked_chunk: str) -> list[int]:
        """The same probe with :data:`NO_MEMORY`: what the passage and the weights give away by themselves."""
        return self.recall(NO_MEMORY, masked_chunk)

    def full_context(self, question: str, text: str) -> list[int]:
        """Prompt that shows the whole text (control)."""
        return self.format.prompt(self.user.full_context(question, text))

    def text_of(self, completion_ids: Sequence[int]) -> str:
        """The completion as text: without special tokens, stop text and thinking block, stripped."""
        return self.format.text_of(completion_ids)

    def target(self, answer: str) -> Target:
        """Completion ids that give this answer in a box."""
        opening, answer = "\\boxed{", self.format.neutral(answer)
        end_ids = self.format.end_ids
        return Target(
            prefix_ids=tuple(self.format.encode(self.format.close_think + opening)),
            answer_ids=tuple(self.format.continue_ids(opening, answer)),
            suffix_ids=(*self.format.continue_ids(opening, "}"), *end_ids),
            n_end=len(end_ids),
        )

    def memory_ids(self, text: str) -> list[int]:
        """Completion ids that write this memory: text and end token (supervised target)."""
        neutral = self.format.neutral(text.strip())
        return [*self.format.encode(self.format.close_think + neutral), *self.format.end_ids]

    def count(self, text: str) -> int:
        """Tokens of a plain text."""
        return len(self.format.encode(self.format.neutral(text)))

    def instruction_tokens(self) -> dict[str, int]:
        """Tokens each kind of prompt takes beyond question, text and memory (template, instructions, headings)."""
        sign = "x"  # empty texts would let the line breaks around them merge
        one = self.count(sign)
        return {
            "write": len(self.write(sign, sign, sign)) - 3 * one,
            "answer": len(self.answer(sign, sign)) - 2 * one,
            "recall": len(self.recall(sign, sign)) - 2 * one,
            "full_context": len(self.full_context(sign, sign)) - 2 * one,
        }

    def budget(self, context_tokens: int, question: str = QUESTION) -> dict[str, int]:
        """Most tokens each kind of turn can take, prompt and completion; check that they fit the model's window.

        A chunk may grow a little when it is tokenised again in its place or when short entities become ``[TARGET]``: a
        fortieth of it is kept free. Raises :class:`UserError` naming ``memory.chunk_tokens`` and
        ``memory.memory_tokens`` where a turn does not fit.
        """
        settings, fixed, asked = self.settings, self.instruction_tokens(), self.count(question)
        chunk = settings.chunk_tokens + settings.chunk_tokens // 40
        needs = {
            "write": fixed["write"] + asked + chunk + 2 * settings.memory_tokens,
            "answer": fixed["answer"] + asked + settings.memory_tokens + settings.answer_tokens,
            "recall": fixed["recall"] + chunk + settings.memory_tokens + settings.answer_tokens,
        }
        kind, most = max(needs.items(), key=lambda item: item[1])
        if most > context_tokens:
            raise UserError(
                f"a {kind} turn can take {most} tokens ({fixed[kind]} of them instructions) but the model's window is "
                f"{context_tokens}; lower memory.chunk_tokens (now {settings.chunk_tokens}), memory.memory_tokens (now "
                f"{settings.memory_tokens}) or memory.answer_tokens (now {settings.answer_tokens})"
            )
        return needs
