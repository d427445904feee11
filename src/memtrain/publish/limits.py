"""What a reader must not expect of an exported model: read from its numbers, not from hope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtrain.evaluation.metrics import METRICS
from memtrain.recipe import Recipe
from memtrain.report.summary import cell

MANY_PAGES = 10_000
"""A corpus below this is called small."""
OFTEN_CUT = 0.1
"""Share of memories cut at the limit that is worth a warning."""
HARDLY_EVER = 0.05
"""Exact match below this is worth a warning."""


def limits(recipe: Recipe | None, summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The card's section of that name, from the run's recipe, its numbers and the manifest of its documents."""
    lines, after = [], summary.get("after", {})
    if recipe is not None:
        lines.append(
            f"The memory holds at most {recipe.memory.memory_tokens:,} tokens. What is not carried over is lost for "
            "good, and nothing marks an answer that is a guess."
        )
        lines.append(f"One run with one seed ({recipe.seed}): how much another seed would change is not known.")
        read = recipe.memory.max_chunks * recipe.memory.chunk_tokens
        lines.append(
            f"Trained on texts of at most {recipe.memory.max_chunks} sections ({read:,} tokens); longer ones were not "
            "part of the training or of the numbers above."
        )
    if recipe is not None and "questions" not in summary:
        lines.append(
            "In training and evaluation the question was always which hidden entity is meant; how well the memory "
            "serves questions of another kind was not measured."
        )
    pages = manifest.get("report", {}).get("pages")
    if pages and pages < MANY_PAGES:
        lines.append(f"The corpus is small: {pages:,} pages. Other kinds of text, other languages: not measured.")
    elif recipe is not None:
        lines.append("Other kinds of text and other languages than the corpus's were not measured.")
    cut = after.get("truncated", {}).get("mean")
    if cut is not None and cut >= OFTEN_CUT:
        lines.append(f"{cut:.0%} of the memories were cut at the limit in the evaluation.")
    for name in ("reconstruction_em", "recall_em"):
        value = after.get(name, {})
        if value.get("mean") is not None and value["mean"] < HARDLY_EVER:
            lines.append(f"{METRICS[name].title}: {cell(value)}. The model hardly ever gives the entity word for word.")
    unsettled = [
        METRICS[name].title
        for name, value in summary.get("difference", {}).items()
        if name in METRICS and METRICS[name].better and value["ci95"][0] is not None and _holds_zero(value)
    ]
    if unsettled:
        lines.append(f"Neither better nor worse than before beyond doubt (interval holds 0): {'; '.join(unsettled)}.")
    worse = [METRICS[name].title for name in summary.get("worse", []) if name in METRICS]
    if worse:
        lines.append(f"**Worse than before training**: {'; '.join(worse)}.")
    lines.append("Whatever the base model gets wrong or is biased in, this one may too; no safety training was added.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _holds_zero(value: Mapping[str, Any]) -> bool:
    low, high = value["ci95"]
    return bool(low <= 0 <= high)
