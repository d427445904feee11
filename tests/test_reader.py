"""The reader's control flow with a scripted engine, and chunking."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine
from tiny_tokenizer import make_tokenizer

from memtrain.engines.base import Engine
from memtrain.memory.prompts import NO_MEMORY, QUESTION, Prompts
from memtrain.memory.reader import answer, read, split_chunks
from memtrain.recipe import MemorySettings
from memtrain.types import SamplingParams

TOKENIZER = make_tokenizer()
PROMPTS = Prompts(TOKENIZER, MemorySettings(style="compact"))
PARAMS = SamplingParams(max_tokens=40)


def scripted(prompt: str, _: int) -> str:
    """Appends the last word of the section to the notes."""
    if "\\boxed" in prompt:
        return "\\boxed{" + prompt.partition("Notes:\n")[2].split()[0] + "}"
    section = prompt.partition("Text:\n")[2].partition("\nNotes:")[0]
    notes = prompt.partition("Notes:\n")[2].partition("\nRewrite")[0].replace(NO_MEMORY, "")
    return f"{notes} {section.split()[-1]}"


def settings_of(chunk_tokens: int, max_chunks: int = 1000, chunking: str = "tokens") -> MemorySettings:
    return MemorySettings.model_validate({"chunk_tokens": chunk_tokens, "max_chunks": max_chunks, "chunking": chunking})


def test_memory_replaces_memory_step_by_step() -> None:
    engine = ScriptedEngine(TOKENIZER, scripted)
    assert isinstance(engine, Engine)
    seen: list[tuple[int, int, str]] = []
    chunks = ["of Anna", "of Boris", "of Clara"]
    trajectory = asyncio.run(
        read(
            engine,
            PROMPTS,
            QUESTION,
            chunks,
            PARAMS,
            document_id="d",
            index=3,
            on_memory=lambda *event: seen.append(event),
        )
    )
    assert trajectory.memories == (NO_MEMORY, "Anna", "Anna Boris", "Anna Boris Clara")
    assert seen == [(1, 3, "Anna"), (2, 3, "Anna Boris"), (3, 3, "Anna Boris Clara")]
    assert (trajectory.document_id, trajectory.index, trajectory.answer) == ("d", 3, "")
    for step, turn in enumerate(trajectory.turns, start=1):
        assert (turn.kind, turn.step, turn.stop_reason) == ("write", step, "stop")
        assert list(turn.prompt_ids) == PROMPTS.write(QUESTION, chunks[step - 1], trajectory.memories[step - 1])
        assert len(turn.logprobs) == len(turn.completion_ids)
    last = asyncio.run(answer(engine, PROMPTS, QUESTION, trajectory, PARAMS))
    assert (last.kind, last.step, last.text) == ("answer", 4, "\\boxed{Anna}")
    prompt = engine.sampled[-1][0]
    assert "Anna Boris Clara" in prompt
    assert "of Clara" not in prompt  # the text itself is gone
    assert asyncio.run(answer(engine, PROMPTS, "who?", "Dora", PARAMS)).text == "\\boxed{Dora}"


def test_cut_memory_is_marked_and_kept() -> None:
    engine = ScriptedEngine(TOKENIZER, lambda *_: "one two three four five six seven eight")
    trajectory = asyncio.run(
        read(engine, PROMPTS, QUESTION, ["a"], SamplingParams(max_tokens=4), document_id="d", index=0)
    )
    assert trajectory.turns[0].stop_reason == "length"
    assert len(trajectory.turns[0].completion_ids) == 4
    assert trajectory.memories[1] == trajectory.turns[0].text != ""
    assert "one two three".startswith(trajectory.memories[1][:5])


def test_no_chunks_no_turns() -> None:
    engine = ScriptedEngine(TOKENIZER, scripted)
    trajectory = asyncio.run(read(engine, PROMPTS, QUESTION, [], PARAMS, document_id="d", index=0))
    assert (trajectory.turns, trajectory.memories) == ((), (NO_MEMORY,))


PIECES = st.sampled_from(
    ["[MASK]", " ", "\n\n", "Document 1:\n", "😀", "é", "word", "x", "漢字", "\u0301", "<|end|>", "ﷺ", "\t"]
)


@given(
    text=st.lists(PIECES, max_size=80).map("".join),
    chunk_tokens=st.integers(16, 60),
    max_chunks=st.integers(1, 6),
    chunking=st.sampled_from(["tokens", "passages"]),
)
@settings(max_examples=200, deadline=None)
def test_chunks_are_slices_that_fit(text: str, chunk_tokens: int, max_chunks: int, chunking: str) -> None:
    everything = split_chunks(text, TOKENIZER, settings_of(chunk_tokens, 10_000, chunking))
    assert "".join(everything) == (text if text.strip() else "")
    assert all(everything)
    assert sum(chunk.count("[MASK]") for chunk in everything) == text.count("[MASK]")  # none was cut
    # A cut may undo a merge of two tokens, hence the little slack.
    blank_tail = len(text) - len(text.rstrip())
    for place, chunk in enumerate(everything):
        tail = 4 * blank_tail if place == len(everything) - 1 else 0
        assert len(TOKENIZER.encode(chunk, add_special_tokens=False)) <= chunk_tokens + 4 + tail
    few = split_chunks(text, TOKENIZER, settings_of(chunk_tokens, max_chunks, chunking))
    assert few == everything[:max_chunks]


def test_chunks_are_as_long_as_they_may_be() -> None:
    text = "0" * 100
    assert [len(chunk) for chunk in split_chunks(text, TOKENIZER, settings_of(16))] == [16] * 6 + [4]


def test_cut_does_not_fall_inside_a_mask() -> None:
    width = len(TOKENIZER.encode("[MASK]", add_special_tokens=False))
    assert width > 1
    for before in range(16 - width, 17):
        chunks = split_chunks("0" * before + "[MASK]" + "0" * 20, TOKENIZER, settings_of(16))
        assert sum(chunk.count("[MASK]") for chunk in chunks) == 1, chunks


def test_passages_stay_whole() -> None:
    passages = [f"Document {number}:\n{'word ' * length}\n\n" for number, length in enumerate([3, 4, 3, 60, 2])]
    counts = [len(TOKENIZER.encode(passage, add_special_tokens=False)) for passage in passages]
    room = counts[0] + counts[1] + 3
    assert room < counts[0] + counts[1] + counts[2]
    chunks = split_chunks("Preface. " + "".join(passages), TOKENIZER, settings_of(room + 6, chunking="passages"))
    assert chunks[0] == "Preface. " + passages[0] + passages[1]
    assert chunks[1] == passages[2]
    assert chunks[2].startswith("Document 3:")  # longer than a chunk: cut
    assert len(chunks) > 4 or chunks[3] != passages[3]
    assert "".join(chunks) == "Preface. " + "".join(passages)


def test_paragraphs_are_passages_where_no_heading_is() -> None:
    paragraphs = ["0" * 10 + "\n\n", "1" * 10 + "\n\n", "2" * 10]
    chunks = split_chunks("".join(paragraphs), TOKENIZER, settings_of(16, chunking="passages"))
    assert chunks == paragraphs


class NoOffsets:
    """A tokenizer of the slow kind: it encodes, but knows no offsets."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("no offsets")

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(char) for char in text]


@pytest.mark.parametrize("chunking", ["tokens", "passages"])
def test_tokenizers_without_offsets_are_served_too(chunking: str) -> None:
    text = "ten chars. " * 20
    chunks = split_chunks(text, NoOffsets(), settings_of(44, chunking=chunking))
    assert "".join(chunks) == text
    assert [len(chunk) for chunk in chunks] == [44] * 5
