"""What is measured of a reading: pure functions of texts, and the list of all metrics with their meaning."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from memtrain.corpus.masking import fold, occurrences, survives_folded
from memtrain.types import Mention, Trajectory


@dataclass(frozen=True)
class Metric:
    """One line of a report."""

    title: str
    """For a person."""
    unit: str
    """``share`` (0 to 1), ``nats`` (summed over the answer's tokens) or ``tokens``."""
    better: int
    """+1: more is better, -1: less is better, 0: neither."""


METRICS: dict[str, Metric] = {
    "recall_likelihood_gain": Metric("recall, likelihood gain by the memory", "nats", 1),
    "recall_logprob": Metric("recall, log-likelihood with the memory", "nats", 1),
    "recall_em": Metric("recall, exact match", "share", 1),
    "recall_f1": Metric("recall, token F1", "share", 1),
    "entities_kept": Metric("entities of all chunks read, kept in the last memory", "share", 1),
    "entities_kept_last_chunk": Metric("entities of the chunk just read, kept in its memory", "share", 1),
    "reconstruction_likelihood_gain": Metric("reconstruction, likelihood gain by the memory", "nats", 1),
    "reconstruction_logprob": Metric("reconstruction, log-likelihood with the memory", "nats", 1),
    "reconstruction_em": Metric("reconstruction, exact match", "share", 1),
    "reconstruction_f1": Metric("reconstruction, token F1", "share", 1),
    "closed_book_recall_logprob": Metric("closed book: recall, log-likelihood", "nats", 0),
    "closed_book_recall_em": Metric("closed book: recall, exact match", "share", 0),
    "closed_book_recall_f1": Metric("closed book: recall, token F1", "share", 0),
    "closed_book_logprob": Metric("closed book: reconstruction, log-likelihood", "nats", 0),
    "closed_book_em": Metric("closed book: reconstruction, exact match", "share", 0),
    "closed_book_f1": Metric("closed book: reconstruction, token F1", "share", 0),
    "full_context_em": Metric("full context: reconstruction, exact match", "share", 0),
    "full_context_f1": Metric("full context: reconstruction, token F1", "share", 0),
    "memory_tokens": Metric("length of a memory", "tokens", 0),
    "truncated": Metric("memories cut at the limit", "share", -1),
}
"""Every metric of the proxy tasks, in the order of the report. Those of recall also come by distance."""

BY_DISTANCE = ("recall_likelihood_gain", "recall_logprob", "recall_em", "recall_f1")
"""Metrics that are also reported for each number of chunks read since the one asked for."""
DISTANCE = "_distance_"
"""Joins a metric's name and a distance: ``recall_em_distance_0`` asks for the chunk read last."""


def split_name(name: str) -> tuple[str, int | None]:
    """``recall_em_distance_3`` -> ``("recall_em", 3)``; a metric over all distances -> ``(name, None)``."""
    base, mark, distance = name.partition(DISTANCE)
    return (base, int(distance)) if mark else (name, None)


def ordered(names: Collection[str]) -> list[str]:
    """Metric names in the order of :data:`METRICS`, distances ascending after each; unknown names last, sorted."""
    rank = {name: place for place, name in enumerate(METRICS)}

    def key(name: str) -> tuple[int, str, int]:
        base, distance = split_name(name)
        return rank.get(base, len(rank)), base, -1 if distance is None else distance

    return sorted(names, key=key)


def surfaces_by_chunk(chunks: Sequence[str], mentions: Iterable[Mention]) -> list[list[str]]:
    """For every chunk the surface forms of the document's mentions that stand in it, as spelt, at word boundaries."""
    surfaces = [surface for surface in dict.fromkeys(mention.text for mention in mentions) if fold(surface)]
    flat = [" ".join(chunk.split()) for chunk in chunks]
    return [[surface for surface in surfaces if _stands_in(chunk, " ".join(surface.split()))] for chunk in flat]


def _stands_in(text: str, surface: str) -> bool:
    # A document has a thousand mentions and 40,000 tokens: plain search finds the places. Between ASCII signs, spaces
    # or the text's ends every place counts; only other neighbours need the expression with the boundaries, which
    # takes milliseconds to compile and looks at one character on each side.
    place = text.find(surface)
    while place >= 0:
        start, end = max(0, place - 1), place + len(surface)
        around = text[start:place] + text[end : end + 1]
        if around.isascii() and not any(char.isalnum() or char == "_" for char in around):
            return True
        if any(span[0] == place - start for span in occurrences(text[start : end + 1], surface)):
            return True
        place = text.find(surface, place + 1)
    return False


def share_kept(memory: str, surfaces: Collection[str]) -> float | None:
    """Share of the surface forms that can be read in the memory (any case, accents or markup, whole words).

    None where there is none to keep.
    """
    if not surfaces:
        return None
    folded = fold(memory)
    return sum(survives_folded(folded, fold(surface)) for surface in surfaces) / len(surfaces)


def reading_metrics(trajectory: Trajectory, surfaces: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Entities kept, memory length and truncation of one reading.

    ``surfaces``: T lists, what could be kept of each chunk (:func:`surfaces_by_chunk`). ``entities_kept``: share of
    the entities of all T chunks found in m[T]. ``entities_kept_last_chunk``: share of the entities of chunk k-1 found
    in m[k], mean over k = 1..T. ``memory_tokens``: mean completion length over the T writes. ``truncated``: share of
    the writes that ended at the limit.
    """
    writes = [turn for turn in trajectory.turns if turn.kind == "write"]
    everything = list(dict.fromkeys(surface for chunk in surfaces[: len(writes)] for surface in chunk))
    shares = [share_kept(memory, chunk) for memory, chunk in zip(trajectory.memories[1:], surfaces, strict=False)]
    last = [share for share in shares if share is not None]
    return {
        "entities_kept": share_kept(trajectory.memories[-1], everything),
        "entities_kept_last_chunk": sum(last) / len(last) if last else None,
        "memory_tokens": sum(len(turn.completion_ids) for turn in writes) / len(writes) if writes else None,
        "truncated": sum(turn.stop_reason == "length" for turn in writes) / len(writes) if writes else None,
    }
