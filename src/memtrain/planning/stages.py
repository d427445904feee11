"""The stages of a recipe, each with the work it makes: what ``memtrain train``, ``task`` and ``compare`` would run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from memtrain.evaluation.long_qa import Asked
from memtrain.planning.compute import Training
from memtrain.planning.cost import Assumptions
from memtrain.planning.made_up import MadeUp, passage_tokens
from memtrain.planning.models import ModelShape
from memtrain.planning.paper_engine import EstimatedTokenizer, Lengths
from memtrain.planning.rehearsal import Player
from memtrain.planning.work import Work
from memtrain.recipe import Recipe

Kind = Literal["evaluation", "priming", "grpo"]
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """One kind of work of one stage."""

    stage: Literal["memtrain", "qa"]
    name: str
    kind: Kind
    """What it is like, for efficiencies that were measured."""
    count: int
    """Steps, or evaluations."""
    work: Work
    """All of them together."""
    training: Training
    trains: bool
    """Whether it changes the model (evaluations do not)."""


@dataclass(frozen=True)
class Sources:
    """What the stages are played with."""

    shape: ModelShape
    tokenizer: Any
    """The model's, or an estimate."""
    train: Sequence[Any] | None
    """Training documents, where some are built."""
    held_out: Sequence[Any] | None
    lengths: Lengths | None = None
    """Measured lengths of memories and answers."""

    @classmethod
    def of(cls, shape: ModelShape, tokenizer: Any, train: Any = None, held_out: Any = None) -> Sources:
        """With an estimate in place of a tokenizer that is not at hand."""
        return cls(shape, tokenizer or EstimatedTokenizer(), train, held_out)


class Drawn(Sequence[T], Generic[T]):
    """As many made-up texts as a recipe asks for, each made when it is asked for."""

    def __init__(self, number: int, make: Callable[[int], T]) -> None:
        self.number, self.make = number, make

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self.make(number) for number in range(*place.indices(self.number))]
        return self.make(place)


def training_of(recipe: Recipe) -> Training:
    """How a recipe trains, from its settings."""
    return Training(
        lora_rank=recipe.model.lora_rank,
        checkpointing=recipe.train.gradient_checkpointing,
        reference=recipe.train.kl_coef > 0,
        weight_bytes=4 if recipe.model.dtype == "float32" else 2,
    )


def assumed_lengths(recipe: Recipe, assumed: Assumptions) -> Lengths:
    """Memories spread evenly around the assumed mean, up to the limit; answers all of the assumed length."""
    fill, limit = assumed.memory_fill, recipe.memory.memory_tokens
    low, high = max(0.0, 2 * fill - 1), min(1.0, 2 * fill)
    writes = tuple(max(1, round(limit * (low + (high - low) * q))) for q in QUANTILES)
    return Lengths((*writes[:-1], max(writes[-1], round(limit * high))), (max(1, round(assumed.answer_tokens)),))


def memtrain_stage(recipe: Recipe, sources: Sources, assumed: Assumptions) -> list[Line]:
    """Evaluations, priming and GRPO of ``memtrain train``."""
    train, held_out = sources.train, sources.held_out
    if train is None or held_out is None:
        made = MadeUp(sources.tokenizer, passage_tokens(recipe))
        size = 1 + recipe.documents.related + recipe.documents.random
        train = Drawn(recipe.documents.train, lambda number: made.document(number, size))
        held_out = Drawn(recipe.documents.held_out, lambda number: made.document(-1 - number, size))
    player = _player(recipe, sources, assumed)
    training, steps = training_of(recipe), recipe.train.steps
    lines = []
    if recipe.priming.steps:
        lengths = player.notes_lengths(train)
        player = replace(player, lengths=replace(player.lengths, writes=lengths or player.lengths.writes))
        work = player.priming(train)
        primed = replace(training, reference=False)
        lines.append(Line("memtrain", "priming", "priming", recipe.priming.steps, work, primed, True))
    if steps:
        lines.append(Line("memtrain", "GRPO", "grpo", steps, player.grpo(train), training, True))
    every = recipe.eval.every
    times = 1 + bool(recipe.priming.steps) + bool(steps) + ((steps - 1) // every if every and steps else 0)
    work = player.evaluation(held_out).times(times)
    return [Line("memtrain", "evaluation", "evaluation", times, work, training, False), *lines]


def qa_stage(recipe: Recipe, task: Recipe, sources: Sources, assumed: Assumptions) -> list[Line]:
    """Task training on long texts, and one evaluation at all lengths; ``task``: the recipe as its trainer sees it."""
    qa = recipe.qa
    made = MadeUp(sources.tokenizer, passage_tokens(recipe))
    player = _player(task, sources, assumed)
    questions = Drawn(4096, lambda number: made.question(number, qa.train_tokens))
    texts = [Asked(length, made.haystack(0, length)) for length in qa.lengths]
    training, steps = training_of(task), task.train.steps
    evaluation = player.qa_evaluation(texts, qa.number)
    lines = [Line("qa", "task evaluation", "evaluation", 1, evaluation, training, False)]
    if steps:
        lines.append(Line("qa", "task training", "grpo", steps, player.grpo(questions), training, True))
    return lines


def _player(recipe: Recipe, sources: Sources, assumed: Assumptions) -> Player:
    lengths = sources.lengths or assumed_lengths(recipe, assumed)
    stock = MadeUp(sources.tokenizer, 100).stock(16 * recipe.memory.memory_tokens + 2000)
    return Player(recipe, sources.tokenizer, sources.shape.window, lengths, stock, assumed.kept_groups)
