"""What a generator gives: a text, a question, all expected answers, and where the answers stand."""

from __future__ import annotations

from dataclasses import dataclass

from memtrain.types import Passage


@dataclass(frozen=True)
class Needle:
    """One sentence that is hidden in a text."""

    text: str
    """The sentence, as it stands there."""
    key: str
    """What may be asked for: the needle's key, or a variable."""
    value: str
    """What it says of the key."""
    depth: float
    """Share of the text's sentences that stand before it, as drawn; 0 to 1."""
    offset: int = -1
    """Where it begins in the text, in characters; -1 before it is placed."""


@dataclass(frozen=True)
class Sample:
    """One text with its question. The same task, length, number, seed and pool give the same sample."""

    id: str
    """``<task>/<number>``: the same question at every length."""
    task: str
    """Name of the task."""
    length: int
    """Tokens asked for; the text fills them nearly and never passes them."""
    text: str
    """What is read."""
    paragraphs: tuple[str, ...]
    """The text's documents in order, without headings (blocks of words in the word tasks)."""
    passages: tuple[Passage | None, ...]
    """The passage behind each paragraph that holds the whole of it; None for any other."""
    question: str
    """What is asked about the text."""
    answers: tuple[str, ...]
    """All that a full answer names."""
    needles: tuple[Needle, ...]
    """Hidden sentences in the order of the text; none in the word tasks."""
    n_tokens: int
    """Tokens of ``text`` by the counting tokenizer."""
    seed: int
    """The seed it was drawn with."""


class TooShort(Exception):
    """A length below the smallest text of a sample."""

    def __init__(self, smallest: int) -> None:
        super().__init__(f"at least {smallest} tokens")
        self.smallest = smallest
        """Tokens that would do."""
