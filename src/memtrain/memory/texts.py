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
    chat_system: str
    """Opens the system message of a reply, before the memory."""


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
        "You talk with a user. What was said earlier is out of your sight, except for a memory that you write "
        "yourself. Below are what was said just now and your memory.\n"
        "Write the memory anew. Carry over what it holds and may still be needed: names, dates, places, figures, "
        "wishes, what is decided and what is open. Add what was said just now. Where that changes something, keep only "
        "what holds now. Your reply takes the place of the old memory: what you leave out is lost. Be brief and "
        "concrete, stay below {words} words, and write the memory alone."
    ),
    chat_section="Said just now:",
    chat_system=(
        "You talk with a user. What was said earlier is out of your sight, except for the memory below and the last "
        "messages after it. Where the two disagree, the messages hold."
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
        section, notes = self._section_and_memory(self.texts.section, chunk, memory)
        return self.joined(self._opening(self.texts.write), asked, section, notes, self.texts.write_cue)

    def chat_write(self, said: str, memory: str) -> str:
        """A memory update of a conversation, from what was said last. In the compact style a reader's, without a
        question: what training on text has taught applies."""
        section, notes = self._section_and_memory(self.texts.chat_section, said, memory)
        return self.joined(self._opening(self.texts.chat_write), section, notes, self.texts.write_cue)

    def chat_system(self, memory: str, instructions: str = "") -> str:
        """The system message of a reply: the application's own instructions, then the memory."""
        return "\n\n".join(part for part in (instructions.strip(), self.texts.chat_system, self.notes(memory)) if part)

    def answer(self, question: str, memory: str) -> str:
        """The last answer, from the memory alone."""
        asked = self.headed(self.texts.question, question)
        return self.joined(self.texts.answer, asked, self.notes(memory), self.texts.answer_cue)

    def recall(self, memory: str, masked_chunk: str) -> str:
        """A recall probe: what ``[TARGET]`` stands for, from one memory and one masked chunk."""
        section, notes = self._section_and_memory(self.texts.section, masked_chunk, memory)
        return self.joined(self.texts.recall, section, notes, self.texts.recall_cue)

    def full_context(self, question: str, text: str) -> str:
        """The whole text is shown (control)."""
        asked = self.headed(self.texts.question, question)
        return self.joined(self.texts.full_context, asked, self.headed(self.texts.section, text), self.texts.answer_cue)

    def _opening(self, text: str) -> str:
        return text.replace("{words}", str(max(1, self.settings.memory_tokens * 3 // 4)))

    def _section_and_memory(self, heading: str, chunk: str, memory: str) -> tuple[str, str]:
        section, notes = self.headed(heading, chunk), self.notes(memory)
        return (section, notes) if self.settings.layout == "section-first" else (notes, section)

    def notes(self, memory: str) -> str:
        """The memory under its heading."""
        return self.headed(self.texts.memory, memory.strip() or NO_MEMORY)

    def headed(self, heading: str, text: str) -> str:
        """A text, made harmless, under its heading."""
        # A line of its own: the text's first word is then tokenised as at the start of a reply, which eases copying,
        # and no tokenizer merges it with the heading, which keeps the common prefix whole.
        neutral = self._neutral(text.strip())
        return f"{heading}\n{neutral}" if heading else neutral

    def joined(self, *parts: str) -> str:
        """The parts that say something, with the style's gap between them."""
        return self.texts.gap.join(part for part in parts if part)
