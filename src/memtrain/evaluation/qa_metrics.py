"""Scores of an answer to a question: pure functions from a reply and the accepted spellings to 0..1.

Only what stands in the reply's last ``\\boxed{}`` counts, as in the published evaluations (MemAgent, MemTrain); a reply
without one, failed or cut off, scores 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.tasks.verifier import exact_match, last_boxed, normalise_words, token_f1

METRICS = ("exact", "em", "f1", "contains")
"""In the order of the report: the published verifier's exact match (white space and case aside), SQuAD's exact match
and F1 (Rajpurkar et al. 2016), and one-way containment (RULER's ``string_match_part``, on words)."""

GAIN = "gain"
"""Nats by which what was seen makes the first accepted answer likelier than the question alone does (its box opened).
Not a score of what was said: it moves long before a small model's exact match leaves zero."""

KEPT = "kept"
"""Whether an accepted answer stands in the last memory: a memory that lost it, or a reply that did not use it?"""

TITLES = {
    "exact": "exact match",
    "em": "SQuAD exact match",
    "f1": "F1",
    "contains": "contains the answer",
    "answered": "answered",
    KEPT: "answer in the last memory",
    GAIN: "likelihood gain (nats)",
}
"""Heads of the columns, for a person."""


def scores(reply: str, golds: Sequence[str]) -> dict[str, float]:
    """All metrics of one reply, best over the accepted spellings; ``answered`` says whether there was a box."""
    boxed = last_boxed(reply)
    return {
        "exact": exact_match(reply, golds),
        "em": squad_exact_match(boxed, golds) if boxed is not None else 0.0,
        "f1": token_f1(reply, golds),
        "contains": contains(boxed, golds) if boxed is not None else 0.0,
        "answered": float(boxed is not None),
    }


def squad_exact_match(said: str, golds: Sequence[str]) -> float:
    """1.0 where the words are the same without punctuation, case and articles."""
    words = normalise_words(said)
    return float(any(words == normalise_words(gold) for gold in golds))


def contains(said: str, golds: Sequence[str]) -> float:
    """1.0 where the words of an accepted spelling stand in the answer one after another."""
    words = normalise_words(said)
    return float(any(_within(normalise_words(gold), words) for gold in golds))


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    return any(list(whole[i : i + len(part)]) == list(part) for i in range(len(whole) - len(part) + 1))
