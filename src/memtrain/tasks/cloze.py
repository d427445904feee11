"""Priming for questions: a sentence of the text with one entity hidden stands for the question that somebody will ask.

The pairs of ``priming.py`` teach to keep entities whatever is asked, and to name a hidden one beside its chunk. Task
training needs two more things that unlabelled text can show as well: to keep what bears on the question, and to answer
from the memory alone. Here the question is a sentence of one chunk with an entity as ``[TARGET]``; the text itself
hides nothing. Notes hold that sentence, word for word, from the chunk it stands in to the end, and plain notes in the
room that is left. Not part of the published method. Nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from memtrain.corpus.masking import mask, survives
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.recipe import MemorySettings, PrimingSettings
from memtrain.tasks.notes import ENTITIES, FACTS, Notes, extend, find_facts, sentences
from memtrain.tasks.recall import askable, stands_in
from memtrain.types import MASK_TOKEN, TARGET_TOKEN, TrainingDocument

SHORTEST, LONGEST = 6, 40
"""Words of a sentence that makes a question."""
SHARE = 0.6
"""Largest share of the room that the sentence may take."""


@dataclass(frozen=True)
class Cloze:
    """One question, its answer, and the notes of every step."""

    question: str
    """The sentence, the entity as ``[TARGET]``."""
    answer: str
    """The entity."""
    chunk: int
    """Index of the chunk that the sentence stands in."""
    notes: tuple[str, ...]
    """m[1..T]; empty text where there is nothing to keep yet."""


def draw_clozes(
    document: TrainingDocument,
    chunks: Sequence[str],
    prompts: Prompts,
    settings: MemorySettings,
    priming: PrimingSettings,
    rng: random.Random,
    room: float,
) -> list[Cloze]:
    """Up to ``priming.cloze_questions`` questions of a document, about different sentences.

    A sentence is used whole or not at all: of 6 to 40 words, without ``[MASK]``, short enough for the memory, its
    entity gone from the question in every spelling. Fewer come back where the document has fewer.
    """
    if not priming.cloze_questions:
        return []
    budget = max(1, int(settings.memory_tokens * (1 - room)))
    entities = [mention.text for mention in askable(document)]
    candidates = [
        (place, sentence, entity)
        for place, chunk in enumerate(chunks)
        for sentence in _usable(chunk)
        for entity in entities
        if stands_in(sentence, entity)
    ]
    rng.shuffle(candidates)
    found: list[Cloze] = []
    used: set[str] = set()
    for place, sentence, entity in candidates:
        if len(found) == priming.cloze_questions:
            break
        question, count = mask(sentence, [entity], TARGET_TOKEN)
        length = len(prompts.memory_ids(sentence))
        if sentence in used or not count or survives(question, entity) or length > budget * SHARE:
            continue
        used.add(sentence)
        asked = f"What is {TARGET_TOKEN}? {question}"
        notes = _notes(chunks, place, sentence, entities, prompts, priming, rng, budget - length)
        found.append(Cloze(asked, entity, place, notes))
    return found


def memories(cloze: Cloze) -> list[str]:
    """m[0..T] as the prompts show them."""
    return [NO_MEMORY, *(text or NO_MEMORY for text in cloze.notes)]


def _usable(chunk: str) -> list[str]:
    texts = (" ".join(chunk[start:end].split()) for start, end in sentences(chunk))
    return [text for text in texts if SHORTEST <= len(text.split()) <= LONGEST and MASK_TOKEN not in text]


def _notes(
    chunks: Sequence[str],
    place: int,
    sentence: str,
    entities: Sequence[str],
    prompts: Prompts,
    priming: PrimingSettings,
    rng: random.Random,
    room: int,
) -> tuple[str, ...]:
    """The sentence once it was read, then plain notes of at most ``room`` tokens."""
    style = ENTITIES if priming.target == "entities" else FACTS
    notes, texts = Notes(), []
    for index, chunk in enumerate(chunks):
        names = [entity for entity in entities if stands_in(chunk, entity)]
        facts = find_facts(chunk, index, names, rng, style)
        notes = extend(notes, facts, max(1, room), lambda text: len(prompts.memory_ids(text)), style)
        parts = [sentence] if index >= place else []
        texts.append("\n".join([*parts, *([notes.text] if notes.text else [])]))
    return tuple(texts)
