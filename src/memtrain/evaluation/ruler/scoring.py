"""RULER's scores: how many of the expected strings stand in the reply, letter case aside.

RULER (arXiv 2404.06654, section 4) looks for each reference anywhere in what the model generated. So do we, in the last
``\\boxed{}`` where there is one, since a model that was told to box its answer may think aloud before; in the whole
reply where there is none. Substrings count, as in RULER: ``art`` stands in ``party``, and a reply that lists everything
is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.tasks.verifier import exact_match, last_boxed, token_f1

METRICS = ("match_all", "match_part", "exact", "f1", "answered")
"""In the order of the report; ``match_part`` where several answers are expected, ``exact`` and ``f1`` where one is."""


def string_match_all(said: str, references: Sequence[str]) -> float:
    """Share of the references that stand in the reply, 0 to 1. Raises ValueError where there is none to look for."""
    if not references:
        raise ValueError("a score needs at least one reference")
    folded = said.lower()
    return sum(reference.lower() in folded for reference in references) / len(references)


def string_match_part(said: str, references: Sequence[str]) -> float:
    """1.0 where at least one reference stands in the reply, else 0.0."""
    return float(string_match_all(said, references) > 0)


def scores(reply: str, answers: Sequence[str]) -> dict[str, float]:
    """All metrics of one reply; a blank reply scores 0 everywhere.

    ``answered`` says whether there was a box. Where a single answer is expected, any is all: ``match_part`` is left
    out, and ``exact`` and ``f1`` are the verifier's (boxed answers only).
    """
    boxed = last_boxed(reply)
    said = reply if boxed is None else boxed
    found = {"match_all": string_match_all(said, answers)}
    if len(answers) > 1:
        found["match_part"] = string_match_part(said, answers)
    else:
        found |= {"exact": exact_match(reply, answers), "f1": token_f1(reply, answers)}
    return found | {"answered": float(boxed is not None)}
