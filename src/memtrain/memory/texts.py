"""Every text the model is shown, in one file.

Two styles (``memory.style``): ``full`` tells a capable model what a memory is for, in the spirit of MemAgent
(arXiv 2507.02259); ``compact`` is two short lines for small models and small windows. Two layouts
(``memory.layout``): ``section-first`` puts what the trajectories of a group share (instructions, question, text) before
what tells them apart (the memory), so that their prompts have one long common prefix; ``memory-first`` is the published
order (question, memory, section). Every reply that is checked stands in ``\\boxed{}``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memtrain.recipe import MemorySettings
from memtrain.types import TARGET_TOKEN

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
    chat_write: str
    """Opens a memory update of a conversation; ``{words}`` is the room in words."""
    chat_section: str
    """Heads what was just said."""
    chat_memory: str
    """Heads the memory of a conversation."""
    chat_write_cue: str
    """Closes a memory update of a conversation."""
    chat_role: str
    """Opens the system message of a reply where the application has no instructions of its own."""
    chat_system: str
    """Says in the system message what the memory is."""


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
    chat_write=(
        "You keep the notes of a conversation between a user and an assistant. Below are the newest messages and the "
        "notes so far.\n"
        "Write the notes anew, as a list of short facts: names, dates, places, figures, wishes, what is decided and "
        "what is open. Keep what the notes hold already. Add what the newest messages say. Where they change "
        "something, keep only what holds now. Your reply replaces the notes: what you leave out is lost. Stay below "
        "{words} words and write the notes alone."
    ),
    chat_section="Newest messages:",
    chat_memory="Notes:",
    chat_write_cue="New notes:",
    chat_role="You are a helpful assistant.",
    chat_system=(
        "You see the last messages of a conversation and your notes on what was said before. Where the two disagree, "
        "the messages hold."
    ),
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
    chat_write="",
    chat_section="Text:",
    chat_memory="Notes:",
    chat_write_cue="Rewrite the notes: old and new facts.",
    chat_role="",
    chat_system="",
)

STYLES = {"full": FULL, "compact": COMPACT}


class UserTexts:
    """What the user's message of each kind of turn says, as text: the same words for every model and engine."""

    def __init__(self, settings: MemorySettings, neutral: Callable[[str], str] = str) -> None:
        """``neutral`` makes what is filled in harmless for one model's template (:meth:`ChatFormat.neutral`)."""
        self.settings, self._neutral = settings, neutral
        self.texts = STYLES[settings.style]

    def write(self, question: str, chunk: str, memory: str) -> str:
        """A memory update: m[t] from (question, chunk, m[t-1])."""
        asked = self.headed(self.texts.question, question)
        section, notes = self._ordered(self.headed(self.texts.section, chunk), self.notes(memory))
        return self.joined(self._opening(self.texts.write), asked, section, notes, self.texts.write_cue)

    def chat_write(self, said: str, memory: str) -> str:
        """A memory update of a conversation, from what was said last. In the compact style it is a reader's without a
        question: what training on text has taught applies as it is."""
        texts = self.texts
        section, notes = self._ordered(self.headed(texts.chat_section, said), self.notes(memory, texts.chat_memory))
        return self.joined(self._opening(texts.chat_write), section, notes, texts.chat_write_cue)

    def chat_system(self, memory: str, instructions: str = "") -> str:
        """The system message of a reply: the application's own instructions, what the memory is, the memory."""
        texts = self.texts
        parts = (instructions.strip() or texts.chat_role, texts.chat_system, self.notes(memory, texts.chat_memory))
        return "\n\n".join(part for part in parts if part)

    def answer(self, question: str, memory: str) -> str:
        """The last answer, from the memory alone."""
        asked = self.headed(self.texts.question, question)
        return self.joined(self.texts.answer, asked, self.notes(memory), self.texts.answer_cue)

    def recall(self, memory: str, masked_chunk: str) -> str:
        """A recall probe: what ``[TARGET]`` stands for, from one memory and one masked chunk."""
        section, notes = self._ordered(self.headed(self.texts.section, masked_chunk), self.notes(memory))
        return self.joined(self.texts.recall, section, notes, self.texts.recall_cue)

    def full_context(self, question: str, text: str) -> str:
        """The whole text is shown (control)."""
        asked = self.headed(self.texts.question, question)
        return self.joined(self.texts.full_context, asked, self.headed(self.texts.section, text), self.texts.answer_cue)

    def _opening(self, text: str) -> str:
        return text.replace("{words}", str(max(1, self.settings.memory_tokens * 3 // 4)))

    def _ordered(self, section: str, notes: str) -> tuple[str, str]:
        return (section, notes) if self.settings.layout == "section-first" else (notes, section)

    def notes(self, memory: str, heading: str = "") -> str:
        """The memory under its heading (default: the reader's)."""
        return self.headed(heading or self.texts.memory, memory.strip() or NO_MEMORY)

    def headed(self, heading: str, text: str) -> str:
        """A text, made harmless, under its heading."""
        # A line of its own: the text's first word is then tokenised as at the start of a reply, which eases copying,
        # and no tokenizer merges it with the heading, which keeps the common prefix whole.
        neutral = self._neutral(text.strip())
        return f"{heading}\n{neutral}" if heading else neutral

    def joined(self, *parts: str) -> str:
        """The parts that say something, with the style's gap between them."""
        return self.texts.gap.join(part for part in parts if part)
