"""Every text the model is shown, in one file, and the ids they become.

Two styles (``memory.style``): ``full`` tells a capable model what a memory is for, in the spirit of MemAgent
(arXiv 2507.02259); ``compact`` is two short lines for small models and small windows. Two layouts
(``memory.layout``): ``section-first`` puts what the trajectories of a group share (instructions, question, text) before
what tells them apart (the memory), so that their prompts have one long common prefix; ``memory-first`` is the published
order (question, memory, section). Every reply that is checked stands in ``\\boxed{}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memtrain.errors import UserError
from memtrain.memory.chat_format import ChatFormat
from memtrain.recipe import MemorySettings
from memtrain.types import RECONSTRUCTION_QUESTION, TARGET_TOKEN

QUESTION = RECONSTRUCTION_QUESTION
NO_MEMORY = "No memory yet."
"""m[0], and what a blank memory is shown as."""


@dataclass(frozen=True)
class Texts:
    """The words of one style. An empty text is left out of the prompt."""

    write: str
    """Opens a memory update; ``{words}`` is the room in words."""
    answer: str
    """Opens the last answer."""
    recall: str
    """Opens a recall probe."""
    full_context: str
    """Opens an answer from the whole text."""
    question: str
    """Heads the question."""
    section: str
    """Heads the text."""
    memory: str
    """Heads the memory."""
    write_cue: str
    """Closes a memory update."""
    answer_cue: str
    """Closes an answer."""
    recall_cue: str
    """Closes a recall probe."""
    gap: str
    """Stands between the parts."""


FULL = Texts(
    write=(
        "A long text reaches you in sections, one at a time. Between sections you remember nothing except a memory "
        "that you write yourself. Below are a question about the whole text, the current section, and your memory.\n"
        "Write the memory anew. Carry over what it already holds and may still be needed. Add what this section says "
        "about people, places, organisations, works, dates and figures, with the words that tie each to the others, "
        "and above all whatever bears on the question. Correct what the section shows to be wrong. Your reply takes "
        "the place of the old memory: what you leave out is lost. Be brief and concrete, stay below {words} words, and "
        "do not answer the question yet."
    ),
    answer=(
        "You have read a long text section by section and can no longer see it. Answer the question from your memory "
        "of it, shown below. If the memory does not settle it, give your best guess. Put the answer alone, without "
        "explanation, inside \\boxed{}."
    ),
    recall=(
        f"Below are a passage in which one entity has been replaced everywhere by {TARGET_TOKEN}, and a memory written "
        f"while reading the text that the passage comes from. Find out what {TARGET_TOKEN} stands for, using both. Put "
        "the entity alone, spelt as in the text, inside \\boxed{}."
    ),
    full_context=(
        "Answer the question about the text below. Put the answer alone, without explanation, inside \\boxed{}."
    ),
    question="Question:",
    section="Section:",
    memory="Memory:",
    write_cue="New memory:",
    answer_cue="Answer:",
    recall_cue=f"What {TARGET_TOKEN} stands for:",
    gap="\n\n",
)

COMPACT = Texts(
    write="",
    answer="",
    recall="",
    full_context="",
    question="",
    section="Text:",
    memory="Notes:",
    write_cue="Rewrite the notes: old and new facts.",
    answer_cue="Answer in \\boxed{}:",
    recall_cue=f"What is {TARGET_TOKEN}? Answer in \\boxed{{}}:",
    gap="\n",
)

STYLES = {"full": FULL, "compact": COMPACT}


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
        self.texts = STYLES[settings.style]
        self.stop: tuple[str, ...] = self.format.stop
        """Stop strings for sampling; empty with a chat template."""

    def write(self, question: str, chunk: str, memory: str) -> list[int]:
        """Prompt of a memory update: m[t] from (question, chunk, m[t-1])."""
        words = max(1, self.settings.memory_tokens * 3 // 4)
        opening = self.texts.write.replace("{words}", str(words))
        asked = self._headed(self.texts.question, question)
        return self._prompt(opening, asked, *self._section_and_memory(chunk, memory), self.texts.write_cue)

    def answer(self, question: str, memory: str) -> list[int]:
        """Prompt of the last answer, from the memory alone."""
        asked = self._headed(self.texts.question, question)
        return self._prompt(self.texts.answer, asked, self._memory(memory), self.texts.answer_cue)

    def recall(self, memory: str, masked_chunk: str) -> list[int]:
        """Prompt of a recall probe: what ``[TARGET]`` stands for, from one memory and one masked chunk."""
        return self._prompt(self.texts.recall, *self._section_and_memory(masked_chunk, memory), self.texts.recall_cue)

    def recall_without_memory(self, masked_chunk: str) -> list[int]:
        """The same probe with :data:`NO_MEMORY`: what the passage and the weights give away by themselves."""
        return self.recall(NO_MEMORY, masked_chunk)

    def full_context(self, question: str, text: str) -> list[int]:
        """Prompt that shows the whole text (control)."""
        asked = self._headed(self.texts.question, question)
        section = self._headed(self.texts.section, text)
        return self._prompt(self.texts.full_context, asked, section, self.texts.answer_cue)

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

    def _section_and_memory(self, chunk: str, memory: str) -> tuple[str, str]:
        section, notes = self._headed(self.texts.section, chunk), self._memory(memory)
        return (section, notes) if self.settings.layout == "section-first" else (notes, section)

    def _memory(self, memory: str) -> str:
        return self._headed(self.texts.memory, memory.strip() or NO_MEMORY)

    def _headed(self, heading: str, text: str) -> str:
        # A line of its own: the text's first word is then tokenised as at the start of a reply, which eases copying,
        # and no tokenizer merges it with the heading, which keeps the common prefix whole.
        neutral = self.format.neutral(text.strip())
        return f"{heading}\n{neutral}" if heading else neutral

    def _prompt(self, *parts: str) -> list[int]:
        return self.format.prompt(self.texts.gap.join(part for part in parts if part))
