"""Which models ``memtrain ui`` serves, told without loading any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memtrain.errors import UserError
from memtrain.serve import resolve
from memtrain.ui import targets_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "small", "model": {"name": "smollm2-135m"}}))
    return tmp_path


def test_a_run_is_compared_with_the_model_it_began_with(run: Path) -> None:
    (run / "model").mkdir()
    assert targets_of(str(run), None) == ["base=smollm2-135m", f"trained={run}"]
    assert targets_of(str(run), "qwen") == ["base=qwen", f"trained={run}"]
    assert targets_of(str(run), "none") == [str(run)]
    served = {one.name: one.recipe.model.name for one in resolve(targets_of(str(run), None), None, [])}
    assert served == {"base": "smollm2-135m", "trained": str(run / "model")}


def test_another_model_stands_alone() -> None:
    assert targets_of("smollm2-135m", None) == ["smollm2-135m"]
    assert targets_of("mine", "smollm2-135m") == ["base=smollm2-135m", "trained=mine"]


def test_a_run_without_a_model_in_one_sentence(run: Path) -> None:
    with pytest.raises(UserError, match="has no model yet: its run is not finished"):
        targets_of(str(run), None)
    (run / "model").mkdir()
    (run / "recipe.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read; name the model to compare with"):
        targets_of(str(run), None)
