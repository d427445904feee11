"""Which runs stand beside each other, as names and recipes (MemTrain, arXiv 2606.03197, tables 1 to 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memtrain.recipe import Recipe
from memtrain.settings.downstream import Ablation

BASE, MEMTRAIN, TASK, BOTH, LONGER = "base", "memtrain", "task", "memtrain-task", "task-longer"
TITLES = {
    BASE: "base",
    MEMTRAIN: "+ MemTrain",
    TASK: "+ task RL",
    BOTH: "+ MemTrain + task RL",
    LONGER: "+ task RL, MemTrain's compute added",
}
"""Rows of the table, in its order."""

DIFFERENCES = ((BOTH, TASK), (BOTH, LONGER), (BOTH, MEMTRAIN), (MEMTRAIN, BASE), (TASK, BASE))
"""What is tested: the first row against the second."""

_CHANGES: dict[Ablation, dict[str, dict[str, Any]]] = {
    "end-to-end": {"tasks": {"mode": "end-to-end"}},
    "decoupled": {"tasks": {"mode": "decoupled"}},
    "exact-reward": {"tasks": {"reconstruction_reward": "exact", "recall_reward": "exact"}},
    "likelihood-reward": {"tasks": {"reconstruction_reward": "likelihood", "recall_reward": "likelihood"}},
    "unpaired-probes": {"tasks": {"paired_probes": False}},
    "memory-first": {"memory": {"layout": "memory-first"}},
    "no-priming": {"priming": {"steps": 0}},
    "priming-only": {"train": {"steps": 0}},
    "cloze-priming": {"priming": {"cloze_questions": 4}},
}


@dataclass(frozen=True)
class Variant:
    """One MemTrain stage: the recipe's own, or an ablation of it."""

    name: str
    """``memtrain``, or the ablation's name."""
    recipe: Recipe
    """With the change in it; the task stage after it and the evaluation use it too."""

    @property
    def is_full(self) -> bool:
        """Whether this is the recipe as it stands."""
        return self.name == MEMTRAIN

    @property
    def after_task(self) -> str:
        """Name of the row that trains on the task afterwards."""
        return f"{self.name}-task"


def variants(recipe: Recipe) -> list[Variant]:
    """The recipe's own MemTrain stage, then ``compare.ablations``; those that change nothing in it are left out."""
    found = [Variant(MEMTRAIN, recipe)]
    for name in recipe.compare.ablations:
        changed = changed_by(recipe, name)
        if changed != recipe:
            found.append(Variant(name, changed))
    return found


def changed_by(recipe: Recipe, ablation: Ablation) -> Recipe:
    """The recipe with the one thing changed that the ablation is named after."""
    update = {}
    for section, values in _CHANGES[ablation].items():
        update[section] = getattr(recipe, section).model_copy(update=values)
    return recipe.model_copy(update=update)
