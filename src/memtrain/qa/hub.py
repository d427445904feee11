"""Questions of a dataset on a model hub: ``hf:dataset[:config[:split]]``, streamed by the datasets library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memtrain.errors import UserError, first_line

PREFIX = "hf:"
SPLIT = "train"


def records(source: str) -> Iterator[Mapping[str, Any]]:
    """Records of ``hf:dataset[:config[:split]]`` (split: train where none is named), for example
    ``hf:hotpotqa/hotpot_qa:distractor:validation``.

    Raises :class:`UserError` where the extra ``hub`` is missing or the hub has no such thing.
    """
    name, config, split = [*source.removeprefix(PREFIX).split(":"), "", ""][:3]
    try:
        import datasets
    except ImportError:
        raise UserError(f'questions "{source}" need the datasets library: pip install "memtrain[hub]"') from None
    try:
        yield from datasets.load_dataset(name, config or None, split=split or SPLIT, streaming=True)
    except Exception as error:  # every backend has errors of its own
        raise UserError(
            f'questions "{source}" cannot be read from the hub: {first_line(error)}; check dataset, config and split, '
            "or give a file"
        ) from None
