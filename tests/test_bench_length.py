"""Length: reading takes time in proportion to the text, and no memory on top of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from synthetic_corpus import write_corpus

from memtrain.bench.length import bench_length, read_document
from memtrain.bench.models import Place, load_engine
from memtrain.bench.progress import Progress
from memtrain.bench.report import LENGTH_MEMORY_TARGET, LENGTH_TIME_TARGET
from memtrain.bench.settings import BenchSettings
from memtrain.bench.workload import long_text


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> BenchSettings:
    """The tiny model on synthetic text: one paragraph a page."""
    corpus = write_corpus(tmp_path_factory.mktemp("length") / "pages.jsonl")
    corpus.write_text(corpus.read_text().replace("\\n\\n", " "))
    return BenchSettings(
        model=str(tiny.model_folder("llama")),
        corpus=str(corpus),
        dtype="float32",
        device="cpu",
        chunk_tokens=64,
        length_memory_tokens=4,
    )


def test_every_chunk_is_read_and_costs_the_same(settings: BenchSettings) -> None:
    engine = load_engine(Place.of(settings), settings)
    text = long_text(tiny.tokenizer(), settings, 7 * settings.chunk_tokens)
    for chunks in (2, 7):
        before = engine.tokens_sampled
        assert read_document(engine, settings, text, chunks) == chunks
        assert engine.tokens_sampled - before == chunks * settings.length_memory_tokens
    with pytest.raises(RuntimeError, match="chunks, not 700"):
        read_document(engine, settings, text, 700)


@pytest.mark.slow
def test_sixty_four_chunks_cost_eight_times_eight(default_model: Path) -> None:
    """The real model, each reading in a process of its own; medians of three."""
    settings = replace(BenchSettings(), model=str(default_model))
    found = bench_length(settings, Progress())
    assert found["chunk_ratio"] == 8
    assert found["time_ratio"]["median"] <= LENGTH_TIME_TARGET
    assert found["memory_ratio"]["median"] < LENGTH_MEMORY_TARGET
