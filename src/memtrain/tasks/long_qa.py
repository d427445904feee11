"""Task training on long texts (MemAgent, arXiv 2507.02259, section 3; MemTrain 4.1): what the reader is asked there.

The episode is that of ``reconstruction.py`` with a question of the text's own: read in chunks, answer from the last
memory, exact match with any accepted answer. Here are its documents. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.qa.haystack import Haystack, HaystackMaker
from memtrain.qa.questions import Question
from memtrain.types import QuestionDocument


class QuestionDocuments(Sequence[QuestionDocument]):
    """One document a question, made when it is asked for: the same for the same seed and place."""

    def __init__(self, questions: Sequence[Question], maker: HaystackMaker, tokens: int, seed: int) -> None:
        """``tokens``: length of the texts. Questions whose gold paragraphs need more must be left out before."""
        self.questions, self.maker, self.tokens, self.seed = questions, maker, tokens, seed

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, place: int) -> QuestionDocument:  # type: ignore[override]
        return document_of(self.maker.make(self.questions[place], self.tokens, self.seed))


def document_of(haystack: Haystack) -> QuestionDocument:
    """A haystack as what a reader is given."""
    question = haystack.question
    first, *others = question.answers
    return QuestionDocument(
        id=f"{question.id.replace('/', '_')}@{haystack.n_tokens}",  # a slash parts group ids
        text=haystack.text,
        question=question.text,
        answer=first,
        aliases=tuple(others),
    )
