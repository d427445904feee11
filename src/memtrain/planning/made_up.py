"""Texts of a wanted length, for plans that are made before any corpus is at hand: common words and made-up names."""

from __future__ import annotations

import random
from typing import Any

from memtrain.corpus.compose import SEPARATOR, heading
from memtrain.qa.haystack import Haystack
from memtrain.qa.questions import Question
from memtrain.recipe import Recipe
from memtrain.types import MASK_TOKEN, Mention, QuestionDocument, TrainingDocument

CHARS_PER_TOKEN = 4.45
"""English prose and the large vocabularies of today's models (SmolLM2, Qwen) on Wikipedia."""
LONG_PASSAGE = 1_700
"""Paragraphs of Wikipedia are seldom longer, in characters; with ``corpus.min_chars`` it makes the published documents
of 150 paragraphs 32,000 tokens long, the middle of the published 24,000 to 40,000."""
_TEXT = (
    "the of and in to was is for as on with by that from at his it an were which are this be had has first one their "
    "its new after who they two her she been other when time during there into school may years more most over city "
    "some world would where later up such used many can state about national out known university united made between"
)
_WORDS = _TEXT.split()
_SYLLABLES = [first + second for first in "bcdfghjklmnprstvwxyz" for second in "aeiou"]


def passage_tokens(recipe: Recipe) -> int:
    """Mean length of a paragraph: midway between the shortest kept and the longest that is usual."""
    longest = min(recipe.corpus.max_chars, max(LONG_PASSAGE, recipe.corpus.min_chars))
    return max(4, round((recipe.corpus.min_chars + longest) / 2 / CHARS_PER_TOKEN))


class MadeUp:
    """Draws texts, the same for the same seed."""

    def __init__(self, tokenizer: Any, tokens: int) -> None:
        """``tokens``: mean length of a passage with its heading."""
        self.tokenizer, self.tokens = tokenizer, tokens
        sample = self._passage(random.Random(0), 400)
        self._words_each = 400 * max(1, tokens) / len(tokenizer.encode(sample, add_special_tokens=False))

    def document(self, number: int, passages: int) -> TrainingDocument:
        """A training document of so many passages, with two names a passage that probes may ask for."""
        rng = random.Random(f"document/{number}")
        mentions, parts = list[Mention](), list[str]()
        for place in range(1, passages + 1):
            names = [self._name(rng), self._name(rng)]
            mentions += [Mention(name) for name in names]
            body = self._body(rng, names)
            parts.append(heading(place) + (f"{MASK_TOKEN} " if place == 1 else "") + body)
        return TrainingDocument(
            id=f"made-up-{number}",
            text=SEPARATOR.join(parts),
            answer=self._name(rng),
            answer_kind="name",
            aliases=(),
            pivot_id="",
            passage_ids=(),
            seed=number,
            n_masks=1,
            n_tokens=passages * self.tokens,
            mentions=tuple(mentions),
        )

    def haystack(self, number: int, tokens: int) -> Haystack:
        """A question in a text of about so many tokens."""
        rng = random.Random(f"haystack/{number}/{tokens}")
        name = self._name(rng)
        paragraphs = tuple(self._body(rng, [name]) for _ in range(max(1, round(tokens / self.tokens))))
        text = SEPARATOR.join(heading(place) + body for place, body in enumerate(paragraphs, 1))
        question = Question(f"made-up-{number}", f"Which city was {name} of the two rivers born in?", (name,))
        return Haystack(question, text, (1,), (0,), paragraphs, tokens, 0)

    def question(self, number: int, tokens: int) -> QuestionDocument:
        """A text and its question, as task training reads them."""
        made = self.haystack(number, tokens)
        return QuestionDocument(made.question.id, made.text, made.question.text, made.question.answers[0])

    def stock(self, tokens: int) -> list[int]:
        """Ids of ordinary text, at least so many."""
        rng = random.Random("stock")
        found: list[int] = []
        while len(found) < tokens:
            found += self.tokenizer.encode(self._passage(rng, 1000), add_special_tokens=False)
        return found

    def _body(self, rng: random.Random, names: list[str]) -> str:
        head = " ".join(names)
        used = len(names) * 4
        return f"{head} {self._passage(rng, max(1, round(self._words_each) - used))}"

    def _passage(self, rng: random.Random, words: int) -> str:
        return " ".join(rng.choices(_WORDS, k=words)) + "."

    def _name(self, rng: random.Random) -> str:
        return " ".join("".join(rng.choices(_SYLLABLES, k=3)).capitalize() for _ in range(2))
