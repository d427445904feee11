"""The work itself: real documents, real prompts, memories of real text. The same for everyone, from the seed alone.

Nothing here imports torch.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.bench.settings import BenchSettings, recipe_of
from memtrain.corpus import documents as corpus_documents
from memtrain.corpus.readers import ReadReport, read_passages
from memtrain.engines.prefix_tree import common_prefix
from memtrain.errors import UserError
from memtrain.memory.prompts import QUESTION, Prompts
from memtrain.memory.reader import split_chunks
from memtrain.types import TrainingDocument


@dataclass(frozen=True)
class Turns:
    """One memory-write turn of several groups."""

    prompts: tuple[tuple[int, ...], ...]
    """One a trajectory, group after group."""
    groups: int
    new_tokens: int
    """What every sequence is to write, end tokens ignored."""

    @property
    def total_new(self) -> int:
        """New tokens of the whole batch."""
        return len(self.prompts) * self.new_tokens


@functools.cache
def training_documents(settings: BenchSettings) -> tuple[TrainingDocument, ...]:
    """Documents drawn from the corpus, all of them long enough; first those that are read, then a stock of text."""
    recipe = recipe_of(settings)
    with tempfile.TemporaryDirectory() as temporary:
        corpus_documents.build(recipe, Path(temporary))
        return tuple(corpus_documents.load(Path(temporary), "train"))


def chunks_of(document: TrainingDocument, tokenizer: Any, settings: BenchSettings) -> list[str]:
    """What is read of a document. Raises :class:`UserError` where it is shorter than ``settings.chunks`` chunks."""
    chunks = split_chunks(document.text, tokenizer, recipe_of(settings).memory)
    if len(chunks) < settings.chunks:
        raise UserError(f"corpus {settings.corpus}: a document fills {len(chunks)} of {settings.chunks} chunks")
    return chunks


def memory_texts(tokenizer: Any, settings: BenchSettings, count: int) -> list[str]:
    """``count`` different stretches of ``memory_tokens`` tokens, from documents that nobody reads here."""
    stock = training_documents(settings)[settings.documents :]
    ids = [token for document in stock for token in tokenizer.encode(document.text, add_special_tokens=False)]
    size = settings.memory_tokens
    if len(ids) < size + count:
        raise UserError(f"corpus {settings.corpus} is too small for {count} memories of {size} tokens")
    step = max(1, min(size, (len(ids) - size) // count))  # overlaps where the stock is short: the texts still differ
    return [tokenizer.decode(ids[i * step : i * step + size]) for i in range(count)]


def write_turns(tokenizer: Any, settings: BenchSettings, documents: int) -> Turns:
    """Prompts of the second write: instructions, a chunk that the group shares, a memory of each trajectory's own."""
    prompts = Prompts(tokenizer, recipe_of(settings).memory)
    memories = memory_texts(tokenizer, settings, documents * settings.group_size)
    rows = []
    for place, document in enumerate(training_documents(settings)[:documents]):
        chunk = chunks_of(document, tokenizer, settings)[-1]
        for member in range(settings.group_size):
            rows.append(tuple(prompts.write(QUESTION, chunk, memories[place * settings.group_size + member])))
    return Turns(tuple(rows), documents, settings.memory_tokens)


def describe(turns: Turns) -> dict[str, Any]:
    """Sizes of a batch for the result file: prompt lengths, and how much of them a group shares."""
    size = len(turns.prompts) // turns.groups
    groups = [turns.prompts[i : i + size] for i in range(0, len(turns.prompts), size)]
    lengths = [len(prompt) for prompt in turns.prompts]
    return {
        "groups": turns.groups,
        "sequences": len(turns.prompts),
        "prompt_tokens_min": min(lengths),
        "prompt_tokens_max": max(lengths),
        "prompt_tokens_total": sum(lengths),
        "shared_tokens_by_group": [common_prefix(min(group), max(group)) for group in groups],
        "new_tokens_each": turns.new_tokens,
    }


def long_text(tokenizer: Any, settings: BenchSettings, tokens: int) -> str:
    """Real text of at least so many tokens: the corpus's passages one after the other, over again where it is short."""
    passages = _passages(settings)
    parts: list[str] = []
    count, place = 0, 0
    while count < tokens + settings.chunk_tokens:
        text = passages[place % len(passages)]
        count += len(tokenizer.encode(text, add_special_tokens=False))
        parts.append(text)
        place += 1
    return "\n\n".join(parts)


@functools.cache
def _passages(settings: BenchSettings) -> list[str]:
    return [passage.text for passage in read_passages(recipe_of(settings).corpus, ReadReport())]
