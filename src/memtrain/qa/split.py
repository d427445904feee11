"""Questions for training and for evaluation, so that no gold paragraph is on both sides."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memtrain.errors import UserError
from memtrain.qa.questions import Question, QuestionSet, read_passages, read_questions
from memtrain.settings import QaSettings
from memtrain.types import Passage


@dataclass
class QuestionSplit:
    """Questions of a recipe's table ``qa``."""

    train: list[Question]
    evaluation: list[Question]
    """All of them, in the file's order; :func:`draw` takes ``qa.number``."""
    pool: list[Passage]
    """All paragraphs: what a search finds."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> questions."""

    def train_pool(self) -> list[Passage]:
        """Distractors of training texts: no gold paragraph of the evaluation."""
        return _without_gold(self.pool, self.evaluation)

    def evaluation_pool(self) -> list[Passage]:
        """Distractors of evaluation texts: no gold paragraph of the training."""
        return _without_gold(self.pool, self.train)


def load_split(settings: QaSettings, need_gold: bool = True) -> QuestionSplit:
    """Read ``qa.questions`` (and ``qa.eval_questions``, ``qa.passages``) and split them.

    ``need_gold``: leave out questions whose gold paragraphs are missing (long-text QA hides them in a text; search QA
    finds what it can). Questions that share a gold paragraph's title (an article) or its text fall on one side, by
    hash. Raises :class:`UserError` where a side is left without questions.
    """
    if not settings.questions:
        raise UserError("the recipe names no questions; set qa.questions to a file or to hf:dataset[:config[:split]]")
    first = read_questions(Path(settings.questions))
    second = read_questions(Path(settings.eval_questions)) if settings.eval_questions else QuestionSet()
    left_out = first.skipped + second.skipped
    known, other = (_usable(found.questions, need_gold, left_out) for found in (first, second))
    if settings.eval_questions:
        taken = {key for question in other for key in _keys(question)}
        train = [question for question in known if not taken & set(_keys(question))]
        left_out["gold paragraphs or question in the evaluation too"] += len(known) - len(train)
        evaluation = other
    else:
        held = _held_out(known, settings.held_out)
        train = [question for question in known if not held[question.id]]
        evaluation = [question for question in known if held[question.id]]
    for side, name in ((train, "training"), (evaluation, "evaluation")):
        if not side:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in left_out.items() if count)
            raise UserError(
                f"qa.questions {settings.questions} leaves no question for {name}"
                + (f" ({reasons})" if reasons else "")
                + "; give more questions, change qa.held_out, or name qa.eval_questions"
            )
    pool = [p for file in settings.passages for p in read_passages(Path(file))]
    pool = pool or list({p.text: p for p in (*first.passages(), *second.passages())}.values())
    return QuestionSplit(train, evaluation, pool, +left_out)


def draw(questions: Sequence[Question], n: int, seed: int) -> list[Question]:
    """Up to ``n`` questions, the same for the same seed."""
    return random.Random(f"{seed}/qa").sample(list(questions), min(n, len(questions)))


def _usable(questions: Sequence[Question], need_gold: bool, left_out: Counter[str]) -> list[Question]:
    usable = [q for q in questions if not need_gold or (q.gold and q.complete)]
    left_out["gold paragraphs missing"] += len(questions) - len(usable)
    unique = list({q.id: q for q in usable}.values())
    left_out["the same id twice"] += len(usable) - len(unique)
    return unique


def _keys(question: Question) -> list[str]:
    """What a question shares with others that may not stand on the other side."""
    return [passage.title or passage.text for passage in question.gold] or [question.text]


def _held_out(questions: Iterable[Question], share: float) -> dict[str, bool]:
    """Question id -> whether it is held out: connected questions together, by the hash of their first key."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    questions = list(questions)
    for question in questions:
        first, *rest = _keys(question)
        for key in rest:
            low, high = sorted((root(first), root(key)))
            parent[high] = low
        root(first)
    return {question.id: _fraction(root(_keys(question)[0])) < share for question in questions}


def _fraction(key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"held out/{key}".encode()).digest()[:8], "big") / 2**64


def _without_gold(pool: Sequence[Passage], questions: Sequence[Question]) -> list[Passage]:
    gold = {passage.text for question in questions for passage in question.gold}
    return [passage for passage in pool if passage.text not in gold]
