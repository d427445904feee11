"""Priming: supervised pairs made from the text itself, so that a small model knows what notes are before GRPO starts.

Two kinds of pair: (question, chunk, notes so far) -> new notes, and (notes, chunk with an entity hidden) -> the entity.
On demand also (question made of a sentence, notes) -> its entity, with notes that keep that sentence (``cloze.py``).
No label and no larger model takes part; the published recipes do without (their base models write notes as they are).
Nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from memtrain.memory.prompts import NO_MEMORY, QUESTION, Prompts
from memtrain.recipe import MemorySettings, PrimingSettings
from memtrain.tasks.cloze import draw_clozes, memories
from memtrain.tasks.notes import ENTITIES, FACTS, Notes, NoteStyle, extend, find_facts
from memtrain.tasks.recall import askable, hide, stands_in
from memtrain.types import Row, TrainingDocument, TurnKind

ROOM = 0.1
"""Share of ``memory_tokens`` that the notes leave free, so that what the model writes ends by itself."""


def pairs(
    document: TrainingDocument,
    chunks: Sequence[str],
    prompts: Prompts,
    settings: MemorySettings,
    priming: PrimingSettings,
    rng: random.Random,
    style: NoteStyle | None = None,
    room: float = ROOM,
) -> list[Row]:
    """Cross-entropy rows of one document: a write pair a chunk, each followed by up to ``recall_pairs`` recall pairs.

    The notes of step k are the memory shown at step k + 1. Recall pairs ask only for entities that the notes hold, over
    all chunks read so far: asking for others would teach guessing. With ``cloze_questions`` the same again for
    questions of the text's own (``cloze.py``), each with an answer pair at the end. ``style`` overrides
    ``priming.target``.
    """
    steps = make_notes(document, chunks, prompts, settings, priming, rng, style, room)
    rows: list[Row] = []
    before = NO_MEMORY
    for step, (chunk, notes) in enumerate(zip(chunks, steps, strict=True), start=1):
        if notes.text:
            prompt = prompts.write(QUESTION, chunk, before)
            rows.append(_row(prompt, prompts.memory_ids(notes.text), document.id, step, "write"))
            for entity, masked_chunk in _recall_questions(document, chunks[:step], notes, priming.recall_pairs, rng):
                prompt = prompts.recall(notes.text, masked_chunk)
                rows.append(_row(prompt, prompts.target(entity).ids, document.id, step, "recall"))
        before = notes.text or NO_MEMORY
    for cloze in draw_clozes(document, chunks, prompts, settings, priming, rng, room):
        shown = memories(cloze)
        for step, (chunk, text) in enumerate(zip(chunks, cloze.notes, strict=True), start=1):
            if text:
                prompt = prompts.write(cloze.question, chunk, shown[step - 1])
                rows.append(_row(prompt, prompts.memory_ids(text), document.id, step, "cloze write"))
        prompt = prompts.answer(cloze.question, shown[-1])
        rows.append(_row(prompt, prompts.target(cloze.answer).ids, document.id, len(chunks) + 1, "cloze answer"))
    return rows


def make_notes(
    document: TrainingDocument,
    chunks: Sequence[str],
    prompts: Prompts,
    settings: MemorySettings,
    priming: PrimingSettings,
    rng: random.Random,
    style: NoteStyle | None = None,
    room: float = ROOM,
) -> list[Notes]:
    """The notes m[1..T] of a document, each within ``memory_tokens`` less ``room``, its end token included."""
    style = style or (ENTITIES if priming.target == "entities" else FACTS)
    budget = max(1, int(settings.memory_tokens * (1 - room)))
    entities = [mention.text for mention in askable(document)]
    found = [[entity for entity in entities if stands_in(chunk, entity)] for chunk in chunks]
    repeats: dict[str, int] = {}
    for entity in (entity for names in found for entity in names):
        repeats[entity] = repeats.get(entity, 0) + 1
    notes, steps = Notes(), []
    for index, chunk in enumerate(chunks):
        facts = find_facts(chunk, index, found[index], rng, style, lambda text: repeats.get(text, 1))
        notes = extend(notes, facts, budget, lambda text: len(prompts.memory_ids(text)), style)
        steps.append(notes)
    return steps


def _recall_questions(
    document: TrainingDocument, chunks: Sequence[str], notes: Notes, n: int, rng: random.Random
) -> list[tuple[str, str]]:
    """Up to ``n`` (entity, masked chunk), entities drawn from the notes, chunks from those they stand in."""
    allowed = {mention.text for mention in askable(document)} & notes.entities
    questions: list[tuple[str, str]] = []
    for entity in rng.sample(sorted(allowed), len(allowed)):
        if len(questions) == n:
            break
        masked = hide(rng.choice([chunk for chunk in chunks if stands_in(chunk, entity)]), entity)
        if masked is not None:
            questions.append((entity, masked))
    return questions


def _row(prompt_ids: list[int], completion_ids: Sequence[int], document_id: str, step: int, pair: str) -> Row:
    kind: TurnKind = "prime"
    return Row(
        prompt_ids=tuple(prompt_ids),
        completion_ids=tuple(completion_ids),
        logprobs=(),
        advantage=0.0,
        group_id=document_id,
        step=step,
        kind=kind,
        loss="cross_entropy",
        metadata={"pair": pair},
    )
