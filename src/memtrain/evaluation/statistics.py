"""Means with intervals, and paired differences: pure numpy, every draw seeded.

The unit of resampling is the document, not the row: trajectories and probes of one document are not independent, so
rows are averaged inside a document first and whole documents are drawn (cluster bootstrap; Efron and Tibshirani, *An
Introduction to the Bootstrap*, 1993, chapters 8 and 13: percentile interval). Every document counts the same, whatever
the number of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]
"""One evaluated thing: the id of its document under ``document``, and one number for each metric it has."""
Estimate = dict[str, Any]
"""``{"mean": float | None, "ci95": [low, high], "n": documents}``; None where there is nothing to say it from."""

BLOCK_CELLS = 4_000_000
"""Resampled cells held at once: bounds the memory of the bootstrap whatever the number of documents."""


def bootstrap_interval(
    values: Sequence[float], resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (one value a document).

    Returns ``(low, high)`` in the unit of the values. Raises ValueError for fewer than two values, a value that is not
    finite, or a level outside (0, 1).
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size < 2:
        raise ValueError("an interval needs at least two documents")
    if not np.isfinite(data).all():
        raise ValueError("an interval needs finite values")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is outside (0, 1)")
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // data.size)
    means = np.concatenate(
        [
            data[rng.integers(data.size, size=(min(block, resamples - start), data.size))].mean(axis=1)
            for start in range(0, resamples, block)
        ]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def estimate(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of one value a document with its 95% interval; the interval is ``[None, None]`` below two documents."""
    if not len(values):
        return {"mean": None, "ci95": [None, None], "n": 0}
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "ci95": [None, None], "n": len(values)}
    return {"mean": mean, "ci95": list(bootstrap_interval(values, resamples, seed)), "n": len(values)}


def by_document(records: Iterable[Record], metric: str) -> dict[str, float]:
    """Mean of a metric over the rows of each document, in order of appearance; rows without it do not count."""
    rows: dict[str, list[float]] = {}
    for record in records:
        value = record.get(metric)
        if value is not None:
            rows.setdefault(record["document"], []).append(float(value))
    return {document: float(np.mean(values)) for document, values in rows.items()}


def clustered(records: Iterable[Record], metric: str, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean over documents of the document's mean; ``n`` counts the documents that have the metric."""
    return estimate(list(by_document(records, metric).values()), resamples, seed)


def paired_difference(
    before: Iterable[Record], after: Iterable[Record], metric: str, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over the documents that both have of ``after - before``, with the bootstrap interval of that mean.

    Pairing takes the documents' own difficulty out of the interval. Documents that only one side has do not count.
    """
    first, second = by_document(before, metric), by_document(after, metric)
    shared = [document for document in first if document in second]
    return estimate([second[document] - first[document] for document in shared], resamples, seed)


def sign_flip_p(
    before: Iterable[Record], after: Iterable[Record], metric: str, seed: int = 0, rounds: int = 10_000
) -> float | None:
    """Two-sided p of "no difference" by a paired permutation test: the signs of the documents' differences are drawn
    anew ``rounds`` times (Fisher's randomisation test; Good, *Permutation Tests*, 2000). None below two shared
    documents. Never 0: the observed signs count as one of the draws.
    """
    first, second = by_document(before, metric), by_document(after, metric)
    gaps = np.array([second[document] - first[document] for document in first if document in second])
    if gaps.size < 2:
        return None
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // gaps.size)
    observed, hits = abs(float(gaps.mean())), 0
    for start in range(0, rounds, block):
        signs = rng.choice(np.array([-1.0, 1.0]), size=(min(block, rounds - start), gaps.size))
        hits += int((np.abs((signs * gaps).mean(axis=1)) >= observed - 1e-12).sum())
    return (hits + 1) / (rounds + 1)
