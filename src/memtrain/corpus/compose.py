"""One training document from one seed: pivot, hidden entity, related and random passages, masks (MemTrain sec. 3)."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from memtrain.corpus.counting import CountTokens
from memtrain.corpus.entities import EntityFinder, hideable, unfit
from memtrain.corpus.masking import count_occurrences, fold, mask, mask_variants, survives_folded
from memtrain.corpus.neighbours import Neighbours
from memtrain.errors import UserError
from memtrain.recipe import Recipe
from memtrain.types import MASK_TOKEN, Entity, Mention, Passage, TrainingDocument

MAX_DRAWS = 2_000
"""Pivots tried for one document before the corpus is held to be unsuitable."""

NO_ENTITY = "pivot without an entity that may be hidden"
STILL_READABLE = "answer readable in another spelling"


def document_seed(recipe_seed: int, split: str, number: int) -> int:
    """The seed of a document: 63 bits of a sha256, the same on every machine and Python."""
    digest = hashlib.sha256(f"{recipe_seed}/{split}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def heading(number: int) -> str:
    """What stands above the ``number``-th passage (counted from 1) of a document."""
    return f"Document {number}:\n"


SEPARATOR = "\n\n"


@dataclass
class _Draft:
    """A document whose tokens are not counted yet."""

    entity: Entity
    pivot: int
    members: list[int]
    masked: dict[int, str]
    """Position in ``members`` -> text with masks, where it has any."""
    n_masks: int


@dataclass(frozen=True)
class _Candidate:
    """A mention with what is needed to keep it apart from an answer."""

    mention: Mention
    key: str
    alias_keys: frozenset[str]


@dataclass
class Composer:
    """Draws the documents of one split. What it finds out about a passage it keeps."""

    split: str
    passages: Sequence[Passage]
    """Passages of this split."""
    finder: EntityFinder
    neighbours: Neighbours
    """Index over ``passages``."""
    recipe: Recipe
    count_tokens: CountTokens
    drops: Counter[str] = field(default_factory=Counter)
    """Reason -> draws that gave no document."""
    _entities: dict[int, tuple[Entity, ...]] = field(default_factory=dict)
    _hideable: dict[int, list[Entity]] = field(default_factory=dict)
    _candidates: dict[int, list[_Candidate]] = field(default_factory=dict)
    _folded: dict[int, str] = field(default_factory=dict)
    _lengths: dict[int, int] = field(default_factory=dict)
    _heading_tokens: int = 0

    @property
    def size(self) -> int:
        """Passages of one document."""
        return 1 + self.recipe.documents.related + self.recipe.documents.random

    def check(self) -> None:
        """Raise :class:`UserError` where the split is smaller than one document."""
        if len(self.passages) < self.size:
            raise UserError(
                f"corpus {self.recipe.corpus.source}: the {self.split} side has {len(self.passages)} passages, but one "
                f"document takes {self.size} (1 + documents.related {self.recipe.documents.related} + documents.random "
                f"{self.recipe.documents.random}): lower those keys, lower corpus.min_chars, or give more text"
            )

    def forget(self, more_than: int) -> None:
        """Drop what was found out about passages, where it is about more than so many: it is found again."""
        for known in (self._entities, self._hideable, self._candidates, self._folded, self._lengths):
            if len(known) > more_than:
                known.clear()

    def draw_many(self, numbers: Iterable[int]) -> list[TrainingDocument]:
        """The documents with these numbers; each is the same alone and in any batch."""
        named = [(f"{self.split}-{n}", document_seed(self.recipe.seed, self.split, n)) for n in numbers]
        return self.draw_seeds(named)

    def draw_seeds(self, named: Sequence[tuple[str, int]]) -> list[TrainingDocument]:
        """Documents from ``(id, seed)`` pairs."""
        pivots = [self._pivot(random.Random(seed), count=False) for _, seed in named]
        self.neighbours.prefetch(pivots, self.recipe.documents.related)
        drafts = [self._draft(seed) for _, seed in named]
        self._measure(drafts)
        masked_texts = [text for draft in drafts for text in draft.masked.values()]
        masked_lengths = iter(self.count_tokens(masked_texts) if masked_texts else [])
        documents = []
        for (name, seed), draft in zip(named, drafts, strict=True):
            plain = sum(self._lengths[index] for at, index in enumerate(draft.members) if at not in draft.masked)
            masked = sum(next(masked_lengths) for _ in draft.masked)
            documents.append(self._document(name, seed, draft, self._heading_tokens + plain + masked))
        return documents

    def _measure(self, drafts: Sequence[_Draft]) -> None:
        """Count the tokens of headings and of passages not counted before."""
        if not self._heading_tokens:
            self._heading_tokens = sum(self.count_tokens([heading(i + 1) + SEPARATOR for i in range(self.size)]))
        new = list(dict.fromkeys(i for draft in drafts for i in draft.members if i not in self._lengths))
        if new:
            lengths = self.count_tokens([self.passages[index].text for index in new])
            self._lengths.update(zip(new, lengths, strict=True))

    def _pivot(self, rng: random.Random, count: bool = True) -> int:
        """A passage, uniformly among all, drawn again until it has an entity that may be hidden."""
        for _ in range(MAX_DRAWS):
            pivot = rng.randrange(len(self.passages))
            if self._hideable_of(pivot):
                return pivot
            self.drops[NO_ENTITY] += count
        raise self._unsuitable()

    def _unsuitable(self) -> UserError:
        return UserError(
            f"corpus {self.recipe.corpus.source}: {MAX_DRAWS} draws on the {self.split} side gave no passage with an "
            f'entity that may be hidden (finder {self.finder.name}): set entities.finder to "rules", raise '
            "entities.max_occurrences or entities.max_words, or give other text"
        )

    def _draft(self, seed: int) -> _Draft:
        rng = random.Random(seed)
        for _ in range(MAX_DRAWS):
            pivot = self._pivot(rng)
            entity = rng.choice(self._hideable_of(pivot))
            members = self._members(pivot, rng)
            masked, count = self._mask(entity, members)
            if masked is not None:
                if count < 1 or members.index(pivot) not in masked:
                    raise AssertionError(f"{entity.text!r} was found in {self.passages[pivot].id} but not masked")
                return _Draft(entity, pivot, members, masked, count)
            self.drops[STILL_READABLE] += 1
        raise self._unsuitable()

    def _members(self, pivot: int, rng: random.Random) -> list[int]:
        """Pivot, its nearest passages and others drawn uniformly, in random order."""
        settings = self.recipe.documents
        chosen = [pivot, *self.neighbours.nearest(pivot, settings.related)]
        missing = self.size - len(chosen)  # random ones, and related ones where too few share a word with the pivot
        taken = set(chosen)
        sample = rng.sample(range(len(self.passages)), min(len(self.passages), missing + len(taken)))
        chosen += [index for index in sample if index not in taken][:missing]
        rng.shuffle(chosen)
        return chosen

    def _mask(self, entity: Entity, members: Sequence[int]) -> tuple[dict[int, str] | None, int]:
        """Texts with masks by position, and their number; None where the answer can still be read somewhere."""
        aliases = self._aliases(entity) if self.recipe.documents.mask_aliases else ()
        surfaces = (entity.text, *aliases)
        keys = [fold(surface) for surface in surfaces]
        masked: dict[int, str] = {}
        total = 0
        for position, index in enumerate(members):
            folded = self._fold_of(index)
            if not any(key in folded for key in keys):
                continue
            text, count = mask(self.passages[index].text, surfaces, MASK_TOKEN)
            for surface in surfaces:
                text, more = mask_variants(text, surface, MASK_TOKEN)
                count += more
            if survives_folded(fold(text), keys[0]):
                return None, 0
            if count:
                masked[position] = text
                total += count
        return masked, total

    def _aliases(self, entity: Entity) -> tuple[str, ...]:
        """Aliases that may be masked: fit as surfaces (a redirect from "a" must not blank every "a")."""
        return tuple(alias for alias in entity.aliases if unfit(alias, self.recipe.entities, self.size) is None)

    def _document(self, name: str, seed: int, draft: _Draft, n_tokens: int) -> TrainingDocument:
        parts = [
            heading(at + 1) + draft.masked.get(at, self.passages[index].text) for at, index in enumerate(draft.members)
        ]
        return TrainingDocument(
            id=name,
            text=SEPARATOR.join(parts),
            answer=" ".join(draft.entity.text.split()),
            answer_kind=draft.entity.kind,
            aliases=tuple(dict.fromkeys(" ".join(alias.split()) for alias in draft.entity.aliases)),
            pivot_id=self.passages[draft.pivot].id,
            passage_ids=tuple(self.passages[index].id for index in draft.members),
            seed=seed,
            n_masks=draft.n_masks,
            n_tokens=n_tokens,
            mentions=self._mentions(draft),
        )

    def _mentions(self, draft: _Draft) -> tuple[Mention, ...]:
        """Entities of all passages that still stand in the text and have nothing to do with the answer."""
        self._find(draft.members)
        answer = fold(draft.entity.text)
        others = {fold(alias) for alias in draft.entity.aliases}
        chosen: dict[str, Mention] = {}
        for position, index in enumerate(draft.members):
            masked = draft.masked.get(position)
            for candidate in self._candidates_of(index):
                text, key = candidate.mention.text, candidate.key
                if text in chosen or key in others or answer in candidate.alias_keys:
                    continue
                if survives_folded(answer, key) or survives_folded(key, answer):
                    continue
                if masked is None or count_occurrences(masked, text):
                    chosen[text] = candidate.mention
        return tuple(chosen.values())

    def _find(self, indices: Iterable[int]) -> None:
        new = [index for index in dict.fromkeys(indices) if index not in self._entities]
        if new:
            found = self.finder.find_many([self.passages[index] for index in new])
            self._entities.update(zip(new, found, strict=True))

    def _hideable_of(self, index: int) -> list[Entity]:
        if index not in self._hideable:
            self._find((index,))
            passage, settings = self.passages[index], self.recipe.entities
            self._hideable[index] = [
                entity for entity in self._entities[index] if hideable(entity, passage, settings, self.size)
            ]
        return self._hideable[index]

    def _candidates_of(self, index: int) -> list[_Candidate]:
        if index not in self._candidates:
            candidates = []
            for entity in self._entities[index]:
                text = " ".join(entity.text.split())
                if unfit(text, self.recipe.entities, self.size) is None and count_occurrences(
                    self.passages[index].text, text
                ):
                    aliases = frozenset(map(fold, entity.aliases))
                    candidates.append(_Candidate(Mention(text, entity.kind), fold(text), aliases))
            self._candidates[index] = candidates
        return self._candidates[index]

    def _fold_of(self, index: int) -> str:
        if index not in self._folded:
            self._folded[index] = fold.__wrapped__(self.passages[index].text)
        return self._folded[index]
