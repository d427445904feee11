"""The reader: a long text goes by in chunks, and only a bounded memory that the model writes itself remains.

MemAgent (arXiv 2507.02259) section 2 and MemTrain (arXiv 2606.03197) section 3. The agent is straight-line code that
awaits the engine; the same functions train, evaluate and serve. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from memtrain.engines.base import Engine
from memtrain.memory.prompts import NO_MEMORY, Prompts
from memtrain.recipe import MemorySettings
from memtrain.types import MASK_TOKEN, Completion, SamplingParams, Trajectory, Turn, TurnKind

MemoryCallback = Callable[[int, int, str], None]
"""Called as ``(step, total, memory)`` after every write, step counted from 1."""

_HEADING = re.compile(r"(?m)^Document \d+:")
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")


async def read(
    engine: Engine,
    prompts: Prompts,
    question: str,
    chunks: Sequence[str],
    params: SamplingParams,
    *,
    document_id: str,
    index: int,
    on_memory: MemoryCallback | None = None,
) -> Trajectory:
    """Read the chunks in order, writing m[1..T]; no answer is asked for.

    Every write is a conversation of its own and replaces the whole memory. A write that was cut at
    ``params.max_tokens`` is kept as it is and marked by its turn's ``stop_reason == "length"``.
    """
    memory, memories, turns = NO_MEMORY, [NO_MEMORY], []
    for step, chunk in enumerate(chunks, start=1):
        prompt_ids = prompts.write(question, chunk, memory)
        [completion] = await engine.sample(prompt_ids, params)
        turns.append(turn_of(prompts, "write", step, prompt_ids, completion))
        memory = turns[-1].text
        memories.append(memory)
        if on_memory is not None:
            on_memory(step, len(chunks), memory)
    return Trajectory(document_id=document_id, index=index, turns=tuple(turns), memories=tuple(memories))


async def answer(
    engine: Engine, prompts: Prompts, question: str, source: Trajectory | str, params: SamplingParams
) -> Turn:
    """Answer from the memory alone: the last one of a trajectory, or a memory given as text (then its step is 1)."""
    memory, step = (source, 1) if isinstance(source, str) else (source.memories[-1], len(source.memories))
    prompt_ids = prompts.answer(question, memory)
    [completion] = await engine.sample(prompt_ids, params)
    return turn_of(prompts, "answer", step, prompt_ids, completion)


def turn_of(prompts: Prompts, kind: TurnKind, step: int, prompt_ids: Sequence[int], completion: Completion) -> Turn:
    """One sampled completion as a turn."""
    return Turn(
        kind=kind,
        step=step,
        prompt_ids=tuple(prompt_ids),
        completion_ids=completion.token_ids,
        logprobs=completion.logprobs,
        text=prompts.text_of(completion.token_ids),
        stop_reason=completion.stop_reason,
    )


def split_chunks(text: str, tokenizer: Any, settings: MemorySettings) -> list[str]:
    """Cut a text into at most ``max_chunks`` chunks of at most ``chunk_tokens`` tokens (counted in the whole text).

    The chunks are slices of the text: joined they are the text again, up to where ``max_chunks`` ends it. No cut falls
    inside a character or inside ``[MASK]``. ``chunking = "passages"`` packs whole "Document i:" passages (paragraphs
    between blank lines where the text has no such headings) and cuts only a passage that is longer than a chunk.
    A blank text gives no chunk.
    """
    if not text.strip():
        return []
    starts = _token_starts(text, tokenizer)
    borders = _passage_borders(text) if settings.chunking == "passages" else []
    chunks: list[str] = []
    begin, token, border = 0, 0, 0
    while begin < len(text) and len(chunks) < settings.max_chunks:
        last = token + settings.chunk_tokens
        end = len(text) if last >= len(starts) else _whole(text, begin, starts[last])
        while border < len(borders) and borders[border] <= begin:
            border += 1
        if end < len(text):
            while border < len(borders) and borders[border] <= end:
                end, border = _later_border(borders, border, end)
        end = max(end, begin + 1)  # a character of more tokens than a chunk still goes by
        if not text[end:].strip():
            end = len(text)
        chunks.append(text[begin:end])
        begin = end
        while token < len(starts) and starts[token] < begin:
            token += 1
    return chunks


def _later_border(borders: list[int], border: int, end: int) -> tuple[int, int]:
    """The last border at or before ``end``, and the index after it."""
    while border + 1 < len(borders) and borders[border + 1] <= end:
        border += 1
    return borders[border], border + 1


def _whole(text: str, begin: int, cut: int) -> int:
    """Move a cut that falls inside ``[MASK]`` before it (after it where the chunk would be empty)."""
    start = text.rfind(MASK_TOKEN, max(begin, cut - len(MASK_TOKEN) + 1), cut + len(MASK_TOKEN) - 1)
    if start < 0:
        return cut
    return start if start > begin else start + len(MASK_TOKEN)


def _passage_borders(text: str) -> list[int]:
    """Where passages begin: at "Document i:" headings, else after blank lines."""
    headings = [match.start() for match in _HEADING.finditer(text)]
    return headings or [match.end() for match in _BLANK_LINE.finditer(text)]


def _token_starts(text: str, tokenizer: Any) -> list[int]:
    """Character offset at which each token begins, ascending; several tokens may share a character."""
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    except (NotImplementedError, KeyError):  # tokenizers without offsets: word by word, exact up to merges over spaces
        return _starts_by_word(text, tokenizer)
    starts: list[int] = []
    reached = 0
    for start, end in pairs:
        # A token that begins inside a character already begun may not start a chunk: it counts from the next character.
        starts.append(start if start >= reached else max(reached - 1, starts[-1] if starts else 0))
        reached = max(reached, end)
    return starts


def _starts_by_word(text: str, tokenizer: Any) -> list[int]:
    starts: list[int] = []
    for word in re.finditer(r"\S+\s*|\s+", text):
        n = max(1, len(tokenizer.encode(word.group(), add_special_tokens=False)))
        width = word.end() - word.start()
        starts.extend(word.start() + width * place // n for place in range(n))
    return starts
