"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memtrain.assets import model_path
from memtrain.errors import UserError


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Folder of the default model; the test is skipped where it is neither cached nor to be had."""
    try:
        folder = model_path("smollm2-135m")
    except UserError as error:
        pytest.skip(f"default model not at hand: {error}")
    assert folder is not None
    return folder


@pytest.fixture(scope="session")
def default_tokenizer(default_model: Path) -> Any:
    """Tokenizer of the default model, with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(default_model)
