"""How long a text is in tokens, without importing torch or transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.assets import cache_home
from memtrain.corpus.scripts import UNSPACED
from memtrain.errors import UserError

CountTokens = Callable[[list[str]], list[int]]
"""Texts -> tokens of each, without special tokens."""

_COUNTED = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
BATCH = 256


@dataclass(frozen=True)
class TokenCounter:
    """A counting function with the name that the manifest keeps."""

    name: str
    """Which tokenizer counts."""
    count: CountTokens
    """See :data:`CountTokens`."""
    estimate: bool = False
    """True where no tokenizer was at hand."""

    def __call__(self, texts: list[str]) -> list[int]:
        return self.count(texts)


def token_counter(tokenizer: Any) -> CountTokens:
    """Tokens as a transformers tokenizer counts them, that of the model that reads, say."""
    return lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def default_counter() -> TokenCounter:
    """The tokenizer of the default model where it lies in the cache (nothing is downloaded), else an estimate."""
    found = sorted((cache_home() / "models").glob("smollm2-135m-*/tokenizer.json"))
    if found:
        return file_counter(found[-1], "smollm2-135m")
    return TokenCounter("estimate", estimate_tokens, estimate=True)


def file_counter(path: Path, name: str) -> TokenCounter:
    """Count with a ``tokenizer.json``. Raises :class:`UserError` where it cannot be read."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{path} is not a tokenizer.json ({error}): delete it, it will be made anew") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        lengths: list[int] = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
            lengths += [len(encoding) for encoding in batch]
        return lengths

    return TokenCounter(name, count)


def estimate_tokens(texts: list[str]) -> list[int]:
    """Words (one token for six letters begun), signs, and one token a character where a script has no spaces."""
    return [sum((len(part) + 5) // 6 for part in _COUNTED.findall(text)) for text in texts]
