"""What the memory viewer shows: documents with their chunks, and of each reading the memories, probes and answer.

Held-out documents come from the evaluations, training documents from the rollouts kept in ``samples/``. A page has room
for some of them: which, is said on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memtrain.corpus.masking import fold
from memtrain.report.console import number
from memtrain.report.html.held_out import held_out
from memtrain.report.html.load import RunData
from memtrain.report.html.marks import ENTITY, HIDDEN, PROBED, Surface, changed, marked, readable
from memtrain.report.html.rollouts import rollouts
from memtrain.report.html.sources import Reading, Text, spread
from memtrain.report.run_files import is_number

BUDGET = 2_200_000
"""Bytes of data on the page, all runs together."""
MOST_HELD_OUT, MOST_ROLLOUTS = 24, 12
Tick = Callable[[], None]
EVALUATION, TRAINING = "Held-out evaluation", "Training rollouts"


def viewer_data(runs: Sequence[RunData], tick: Tick = lambda: None) -> dict[str, Any]:
    """``{"runs": [{"name", "groups": [{"title", "note", "documents": [...]}]}]}`` as the page's script takes it."""
    found = []
    for run in runs:
        room = BUDGET // len(runs)
        groups = []
        kinds = ((EVALUATION, held_out(run), MOST_HELD_OUT), (TRAINING, rollouts(run), MOST_ROLLOUTS))
        for title, texts, most in kinds:
            # What the first kind leaves of its half is the second one's.
            share = room // 2 if title == EVALUATION else room
            shown, size = _within(texts, most, share)
            room -= size
            if shown:
                note = _note(title, shown, texts)
                # Of an evaluation the last reading is looked at first, of a group of trajectories the best.
                groups.append({"title": title, "note": note, "newest": title == EVALUATION, "documents": shown})
            elif texts:
                run.notes.append(f"{title}: the texts are too long for the page; see memtrain show")
            tick()
        found.append({"name": run.name, "groups": groups})
    return {"runs": found}


def _within(texts: Sequence[Text], most: int, room: int) -> tuple[list[dict[str, Any]], int]:
    """Texts evenly spaced over all of them, as many as there is room for, ready for the page; and their size."""
    if not texts:
        return [], 0
    made = {0: ready(texts[0])}
    n = min(most, room // _bytes(made[0]))
    while n > 0:  # texts differ in length: where they turn out too long, fewer of them, still evenly spaced
        chosen = spread(len(texts), n)
        made |= {place: ready(texts[place]) for place in chosen if place not in made}
        shown = [made[place] for place in chosen]
        used = _bytes(shown)
        if used <= room:
            return shown, used
        n = min(n - 1, n * room // used)
    return [], 0


def _bytes(data: object) -> int:
    return len(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))


def _note(title: str, shown: Sequence[Any], texts: Sequence[Text]) -> str:
    what = "documents" if title == EVALUATION else "sampled documents"
    note = f"{len(shown)} of {len(texts)} {what}" + (", evenly spaced" if len(shown) < len(texts) else "")
    most = max((text.of for text in texts), default=0)
    if title == TRAINING and most > max(len(text.readings) for text in texts):
        note += f"; best, middle and worst of {most} trajectories"
    return note


def ready(text: Text) -> dict[str, Any]:
    """One document with its readings, cut into pieces and marked."""
    asked: dict[tuple[int, int, str], int] = {}
    for reading in text.readings:
        for probe in reading.probes:
            asked.setdefault((probe["chunk"], probe["step"], probe["gold"]), len(asked) + 1)
    entities = [surface for surface in dict.fromkeys(text.entities) if fold(surface)]
    folded = [fold(surface) for surface in entities]
    known: list[Surface] = [(surface, ENTITY, str(place)) for place, surface in enumerate(entities)]
    hidden: list[Surface] = [("[MASK]", HIDDEN, "")]
    hidden += [(gold, HIDDEN, "") for gold in text.golds if gold.strip()]
    chunks = []
    for place, chunk in enumerate(text.chunks):
        numbers: dict[str, list[int]] = {}
        for (number_of_chunk, _, gold), n in asked.items():
            if number_of_chunk == place:
                numbers.setdefault(gold, []).append(n)
        chunks.append(marked(chunk.rstrip(), [*hidden, *_probed(numbers), *known]))
    return {
        "id": text.id,
        "about": text.about,
        "gold": text.golds[0] if text.golds else "",
        "entities": len(entities),
        "chunks": chunks,
        "whole": text.whole,
        "heading": text.heading,
        "readings": [_reading(reading, asked, hidden, known, folded) for reading in text.readings],
    }


def _probed(numbers: Mapping[str, Sequence[int]]) -> list[Surface]:
    return [(gold, PROBED, ",".join(map(str, found))) for gold, found in numbers.items() if found]


def _reading(
    reading: Reading,
    asked: Mapping[tuple[int, int, str], int],
    hidden: Sequence[Surface],
    known: Sequence[Surface],
    folded: Sequence[str],
) -> dict[str, Any]:
    memories = []
    for place, memory in enumerate(reading.memories):
        step = reading.first_step + place
        numbers: dict[str, list[int]] = {}
        for (_, k, gold), n in asked.items():
            if k == step:
                numbers.setdefault(gold, []).append(n)
        surfaces = [*hidden, *_probed(numbers), *known]
        before = reading.memories[place - 1] if place else ""
        compared = place > 0 or reading.first_step == 1
        pieces = changed(before, memory, surfaces) if compared else marked(memory, surfaces)
        cut = reading.cut[place] if place < len(reading.cut) else False
        memories.append({"k": step, "p": pieces, "cut": cut, "kept": readable(memory, folded), "diff": compared})
    probes = [
        {
            "n": asked[probe["chunk"], probe["step"], probe["gold"]],
            "k": probe["step"],
            "l": probe["chunk"],
            "gold": probe["gold"],
            "answer": probe.get("answer"),
            "right": probe.get("right"),
            "reward": _short(probe.get("reward")),
            "measure": probe.get("measure", "reward"),
        }
        for probe in reading.probes
    ]
    return {
        "label": reading.label,
        "facts": [[name, _short(value)] for name, value in reading.facts.items() if is_number(value)],
        "memories": memories,
        "probes": sorted(probes, key=lambda probe: probe["n"]),
        "answer": reading.answer,
        "right": reading.right,
        "missing": reading.missing,
    }


def _short(value: object) -> str | None:
    return number(value).replace("-", "−") if is_number(value) else None
