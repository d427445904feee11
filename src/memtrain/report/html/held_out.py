"""Held-out documents with their readings, from the records of the evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.corpus.masking import count_occurrences
from memtrain.report.html.load import RunData
from memtrain.report.html.sources import Reading, Text, documents_of, probe_of
from memtrain.report.run_files import is_number
from memtrain.report.show import passages_of
from memtrain.types import TrainingDocument

SAMPLES = 2
"""Readings of a document that are shown of each evaluation."""


def held_out(run: RunData) -> list[Text]:
    """The documents of the run's evaluations, in their order."""
    labels = [label for label in run.evaluations if not label.startswith("step-")]
    labels += [label for label in run.evaluations if label.startswith("step-")][-1:] if "after" not in labels else []
    by_document: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for label in labels:
        for row in run.evaluations[label].records:
            by_document.setdefault(row["document"], {}).setdefault(label, []).append(row)
    documents = documents_of(run, "held_out", by_document)
    found = []
    for name, rows in by_document.items():
        readings = [one for label in labels for one in _readings(label, rows.get(label, []))]
        if readings:
            everything = [row for label in labels for row in rows.get(label, [])]
            found.append(_text(name, documents.get(name), everything, readings))
    return found


def _text(name: str, document: TrainingDocument | None, rows: Sequence[Any], readings: list[Reading]) -> Text:
    gold = next((str(row["gold"]) for row in rows if row.get("kind") == "reading" and row.get("gold")), "")
    if document is None:
        return Text(name, "its text was not kept", [], golds=[gold] if gold else [], readings=readings)
    lengths = next((row["chunk_chars"] for row in rows if _is_lengths(row.get("chunk_chars"))), None)
    chunks = cut(document.text, lengths) if lengths else passages_if_chunks(document.text, readings)
    return Text(
        name,
        f"{document.n_tokens:,} tokens",
        chunks or [document.text],
        whole=not chunks,
        golds=[document.answer, *document.aliases],
        entities=[mention.text for mention in document.mentions],
        readings=readings,
    )


def _is_lengths(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(length, int) and length > 0 for length in value)


def cut(text: str, lengths: Sequence[int]) -> list[str]:
    """Slices of these lengths, one after the other."""
    chunks, start = [], 0
    for length in lengths:
        chunks.append(text[start : start + length])
        start += length
    return chunks


def passages_if_chunks(text: str, readings: Sequence[Reading]) -> list[str]:
    """The passages, where the probes say that each was a chunk; else nothing."""
    passages = passages_of(text)
    probes = [probe for reading in readings for probe in reading.probes]
    if not probes or max(probe["step"] for probe in probes) != len(passages):
        return []
    stand = all(count_occurrences(passages[probe["chunk"]], probe["gold"]) for probe in probes if probe["gold"].strip())
    return passages if stand else []


def _readings(label: str, rows: Sequence[Mapping[str, Any]]) -> list[Reading]:
    """The readings of one document in one evaluation."""
    found = []
    for row in [row for row in rows if row.get("kind") == "reading" and isinstance(row.get("memory"), str)][:SAMPLES]:
        sample = row.get("sample")
        probes = [probe_of(one) for one in rows if one.get("kind") == "recall" and one.get("sample") == sample]
        asked = [probe for probe in probes if probe is not None]
        memories, flags = row.get("memories"), row.get("cut")
        kept = isinstance(memories, list) and all(isinstance(memory, str) for memory in memories) and bool(memories)
        last = max((probe["step"] for probe in asked), default=1)
        reading = Reading(
            label.replace("_", " ") + (f", sample {sample}" if sample else ""),
            list(memories) if kept and memories else [row["memory"]],
            1 if kept else last,
            [bool(flag) for flag in flags] if isinstance(flags, list) else [],
            asked,
            str(row["answer"]) if row.get("answer") is not None else None,
            bool(row["reconstruction_em"]) if is_number(row.get("reconstruction_em")) else None,
            {
                "likelihood gain": row.get("reconstruction_likelihood_gain"),
                "entities kept": row.get("entities_kept"),
                "memory tokens": row.get("memory_tokens"),
            },
        )
        if not kept and last > 1:
            reading.missing = "Of this evaluation only the last memory was kept: entities are marked by it."
        if not reading.cut and len(reading.memories) == 1 and is_number(row.get("truncated")):
            reading.cut = [row["truncated"] == 1.0]
        found.append(reading)
    return found
