"""Every setting of a run, typed and documented; ``recipe.py`` reads them from TOML.

``training.py`` has the MemTrain stage, ``downstream.py`` what comes after it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import model_validator

from memtrain.settings.base import Mode, RewardKind, Section
from memtrain.settings.downstream import CompareSettings, QaSettings
from memtrain.settings.search import SearchSettings
from memtrain.settings.serving import ChatSettings, ServeSettings
from memtrain.settings.tinker import TinkerSettings
from memtrain.settings.training import (
    CorpusSettings,
    DocumentSettings,
    EntitySettings,
    EvalSettings,
    LogSettings,
    MemorySettings,
    ModelSettings,
    PrimingSettings,
    SamplerSettings,
    TaskSettings,
    TrainSettings,
)

__all__ = [
    "ChatSettings",
    "CompareSettings",
    "CorpusSettings",
    "DocumentSettings",
    "EntitySettings",
    "EvalSettings",
    "LogSettings",
    "MemorySettings",
    "Mode",
    "ModelSettings",
    "PrimingSettings",
    "QaSettings",
    "Recipe",
    "RewardKind",
    "SamplerSettings",
    "SearchSettings",
    "Section",
    "ServeSettings",
    "TaskSettings",
    "TinkerSettings",
    "TrainSettings",
]


class Recipe(Section):
    """A whole run."""

    name: str = "unnamed"
    """Names the run folder: ``runs/<name>``."""
    seed: int = 0
    """Every random draw of the run comes from it."""
    engine: Literal["torch", "tinker"] = "torch"
    """torch: the model in this process (with workers: in each); tinker: a server of the Tinker API ([tinker])."""
    model: ModelSettings = ModelSettings()
    corpus: CorpusSettings = CorpusSettings()
    entities: EntitySettings = EntitySettings()
    documents: DocumentSettings = DocumentSettings()
    memory: MemorySettings = MemorySettings()
    tasks: TaskSettings = TaskSettings()
    priming: PrimingSettings = PrimingSettings()
    sampler: SamplerSettings = SamplerSettings()
    tinker: TinkerSettings = TinkerSettings()
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()
    log: LogSettings = LogSettings()
    qa: QaSettings = QaSettings()
    search: SearchSettings = SearchSettings()
    compare: CompareSettings = CompareSettings()
    chat: ChatSettings = ChatSettings()
    serve: ServeSettings = ServeSettings()

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """``model = "NAME"`` and ``corpus = "SOURCE"`` stand for their tables' main key."""
        if isinstance(data, dict):
            data = dict(data)
            if isinstance(data.get("model"), str):
                data["model"] = {"name": data["model"]}
            if isinstance(data.get("corpus"), str):
                data["corpus"] = {"source": data["corpus"]}
        return data

    @property
    def importance_sampling_cap(self) -> float:
        """``train.importance_sampling_cap`` with auto resolved; 0 is off."""
        cap = self.train.importance_sampling_cap
        if cap == "auto":
            return 2.0 if self.sampler.kind != "torch" and self.train.old_logprobs == "recompute" else 0.0
        return cap

    def with_model(self, **changes: Any) -> Recipe:
        """The same recipe with other settings of its ``model`` (not validated: for what the code itself decides)."""
        return self.model_copy(update={"model": self.model.model_copy(update=changes)})

    def fingerprint(self) -> str:
        """First 12 hex digits of the sha256 of the settings that a run depends on: tells two recipes apart."""
        text = json.dumps(self.model_dump(mode="json", exclude={"chat", "serve"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
