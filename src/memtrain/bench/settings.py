"""What is measured and how often: one frozen dataclass, written into every result file.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from memtrain.errors import UserError
from memtrain.recipe import Recipe, parse_recipe

BENCHMARKS = ("limit", "decode", "rollouts", "update", "step", "length")
"""In the order in which ``memtrain bench`` runs them."""


@dataclass(frozen=True)
class BenchSettings:
    """The work of all benchmarks. The defaults are those of the result table."""

    model: str = "smollm2-135m"
    """Built-in name, folder or hub id."""
    corpus: str = "enwiki-sample"
    """Real text for documents, memories and probes."""
    dtype: Literal["auto", "float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    group_size: int = 16
    """G: trajectories a document."""
    documents: int = 4
    """Groups of the large rollout; the small one has a single group."""
    chunk_tokens: int = 512
    memory_tokens: int = 128
    """Length of the memory in a prompt, and new tokens of a memory write."""
    answer_tokens: int = 24
    """New tokens of an answer."""
    chunks: int = 2
    """Memory writes of a trajectory in ``update`` and ``step``."""
    recall_samples: int = 4
    """Answers to the recall probe of each trajectory in ``update`` and ``step``."""
    kl_coef: float = 1e-3
    """Weight of the KL term; above 0 everyone runs a reference pass."""
    micro_batch_tokens: int = 4096
    """Most tokens in one of our forward and backward passes, prefixes counted once."""
    compile_sampler: bool = True
    """Our sampler's layers through torch.compile (``sampler.compile`` of a recipe); vLLM compiles its own."""
    peer_micro_batch_tokens: int = 1024
    """The same for the peers, padding included: one row at a time is their fastest on two cores (``tune``)."""
    length_chunks: tuple[int, int] = (8, 64)
    """Documents whose reading is compared by ``length``."""
    length_memory_tokens: int = 32
    """New tokens of a memory write in ``length``."""
    rounds: int = 3
    """Measured rounds; every round runs all contestants in turn."""
    warmup: int = 1
    """Rounds that are run and not counted."""
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def quick(settings: BenchSettings) -> BenchSettings:
    """The same work at a tenth of its size: shows that everything runs, proves nothing."""
    return replace(
        settings,
        group_size=4,
        documents=2,
        chunk_tokens=96,
        memory_tokens=16,
        answer_tokens=8,
        recall_samples=2,
        micro_batch_tokens=2048,
        peer_micro_batch_tokens=512,
        length_chunks=(2, 6),
        length_memory_tokens=4,
        rounds=1,
    )


def override(settings: BenchSettings, texts: Sequence[str]) -> BenchSettings:
    """Lay ``key=value`` texts over settings. Raises :class:`UserError` for an unknown key or type of value."""
    known = {item.name: getattr(settings, item.name) for item in fields(settings)}
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise UserError(f"{text!r} sets nothing that memtrain bench knows; its keys are {', '.join(known)}")
        try:
            changes[key] = _like(known[key], value)
        except (ValueError, KeyError):
            raise UserError(f"key {key!r} is {value!r}; give it like {known[key]!r}") from None
    return replace(settings, **changes)


def _like(old: Any, text: str) -> Any:
    """The text as a value of the old one's type."""
    if isinstance(old, tuple):
        values = tuple(int(part) for part in text.split(","))
        if len(values) != len(old):
            raise ValueError(text)
        return values
    if isinstance(old, bool):
        return {"true": True, "false": False}[text.lower()]
    return type(old)(text)


def recipe_of(settings: BenchSettings) -> Recipe:
    """The recipe behind the work: the project's own for this model (compact prompts), sizes from the settings.

    Documents are one and a half times as long as what is read of them, so that every chunk is full.
    """
    passage = 250  # tokens of a passage of 1,000 characters
    needed = settings.chunks * settings.chunk_tokens * 3 // 2 // passage + 1
    return parse_recipe(
        {
            "name": "bench",
            "seed": settings.seed,
            "model": {"name": settings.model, "dtype": settings.dtype, "device": settings.device},
            "corpus": {"source": settings.corpus, "max_chars": 1500},
            "entities": {"finder": "rules"},
            "documents": {"train": 2 * settings.documents + 2, "held_out": 1, "related": 1, "random": needed + 3},
            "memory": {
                "chunk_tokens": settings.chunk_tokens,
                "max_chunks": settings.chunks,
                "memory_tokens": settings.memory_tokens,
                "answer_tokens": settings.answer_tokens,
                "style": "compact",
            },
            "tasks": {
                "probes": 1,
                "recall_samples": settings.recall_samples,
                "reconstruction_reward": "f1",
                "recall_reward": "f1",
            },
            "train": {
                "group_size": settings.group_size,
                "documents_per_step": 1,
                "lr": 1e-6,
                "warmup_steps": 0,
                "kl_coef": settings.kl_coef,
                "micro_batch_tokens": settings.micro_batch_tokens,
            },
        },
        "bench",
    )
