"""What every table of a recipe is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

RewardKind = Literal["exact", "f1", "likelihood"]
Mode = Literal["full", "decoupled", "end-to-end"]


class Section(BaseModel):
    """A table of the recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
