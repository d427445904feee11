"""Runs made by the project's own writers, for tests of what reads them: real formats, a scripted model."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripted_engine import ScriptedEngine
from tiny_tokenizer import make_tokenizer

from memtrain.corpus import store
from memtrain.evaluation.proxy import evaluate
from memtrain.memory.prompts import Prompts
from memtrain.recipe import Recipe, parse_recipe
from memtrain.report.summary import summarise, write_summary
from memtrain.rl.checkpoint import RunFolder
from memtrain.rl.experience import collect, sample_records
from memtrain.rl.trainer import write_samples
from memtrain.types import Mention, TrainingDocument

PEOPLE = ("Anna Vogel", "Boris Petrov", "Clara Silva", "Dmitri Orlov", "Elena Rossi", "Fatima Haddad", "Goran Ilic")
PLACES = ("Lisbon", "Ulm", "Geneva", "Odessa", "Kyoto", "Valparaiso", "Tromso", "Samarkand")
DEEDS = ("founded a school in", "wrote her letters from", "opened a bridge in", "lost an election in", "was born in")
HOSTILE = "</script><img src=x onerror=alert(1)><b>\"quoted\" & 'single'</b>\u2028<!-- \x00 ]]>"


def document(number: int, split: str, passages: int = 4, extra: str = "") -> TrainingDocument:
    """A text of short passages with people, places and years; one place is hidden."""
    rng = random.Random(f"{split}/{number}")
    hidden, *places = rng.sample(PLACES, 5)
    people, years = rng.sample(PEOPLE, 4), [str(rng.randint(1800, 1999)) for _ in range(passages * 3)]
    parts = []
    for place in range(passages):
        lines = [
            f"In {years[place * 3 + n]} {people[(place + n) % 4]} {rng.choice(DEEDS)} {rng.choice(places)}."
            for n in range(3)
        ]
        if place in (0, passages - 1):
            lines.insert(1, f"All roads led to [MASK] then, and {people[place % 4]} took one of them.")
        parts.append(f"Document {place + 1}:\n{' '.join(lines)}{extra if place == 0 else ''}")
    text = "\n\n".join(parts)
    known = [name for name in (*people, *places, *years) if name in text]
    return TrainingDocument(
        id=f"{split}-{number}", text=text, answer=hidden, answer_kind="name", aliases=(), pivot_id=f"page#{number}",
        passage_ids=tuple(f"page#{number + place}" for place in range(passages)), seed=number, n_masks=2,
        n_tokens=len(text) // 4, mentions=tuple(Mention(name, "name") for name in dict.fromkeys(known)),
    )  # fmt: skip


def replies(skill: float, extra: str = "") -> Callable[[str, int], str]:
    """A model that notes a share ``skill`` of the sentences it is shown, and answers from its notes at that rate."""

    def reply(prompt: str, number: int) -> str:
        rng = random.Random(f"{prompt}/{number}/{skill}")
        _, _, shown = prompt.partition("Text:\n")
        section, _, rest = shown.partition("\nNotes:\n")
        if "Rewrite the notes" in rest:
            old = rest.partition("\nRewrite")[0]
            sentences = re.findall(r"In \d+ [^.]*\.", "" if old.startswith("No memory") else old)
            sentences = [one for one in sentences if rng.random() < 0.5 + skill / 2]
            sentences += [one for one in re.findall(r"In \d+ [^.]*\.", section) if rng.random() < skill]
            return " ".join(sentences) + extra
        notes = prompt.rpartition("Notes:\n")[2]
        known = [name for name in (*PEOPLE, *PLACES, *re.findall(r"\d{4}", notes)) if name in notes]
        left = [name for name in known if name not in section] or known
        return f"\\boxed{{{rng.choice(left)}}}" if left and rng.random() < skill else f"I saw none.{extra}"

    return reply


def recipe_of(steps: int = 30, **changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "name": "made",
        "seed": 3,
        "memory": {
            "chunk_tokens": 180, "max_chunks": 4, "chunking": "passages", "memory_tokens": 160, "answer_tokens": 24,
            "style": "compact",
        },
        "tasks": {"reconstruction_reward": "exact", "recall_reward": "f1", "probes": 2, "recall_samples": 2},
        "priming": {"steps": 5},
        "train": {"steps": steps, "documents_per_step": 2, "group_size": 4},
        "eval": {"documents": 8, "samples": 1, "probes": 4, "bootstrap": 200, "full_context": False},
        "log": {"samples": 2},
    }  # fmt: skip
    for key, value in changes.items():
        data[key] = data.get(key, {}) | value if isinstance(value, dict) else value
    return parse_recipe(data, "of a test")


def make_run(
    folder: Path,
    steps: int = 30,
    skill: float = 0.7,
    extra: str = "",
    finished: bool = True,
    passages: int = 4,
    **changes: Any,
) -> Path:
    """A run's folder as ``memtrain train`` leaves it, model and plots apart. ``extra``: text that stands in documents,
    memories and answers; ``finished``: with the last evaluation and the summary."""
    recipe = recipe_of(steps, **changes)
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval").mkdir(exist_ok=True)
    train, held_out = _documents(folder, extra, passages)
    run.claim(recipe)
    tokenizer = make_tokenizer()
    prompts = Prompts(tokenizer, recipe.memory)
    rng = random.Random(recipe.seed)
    for step in range(1, recipe.priming.steps + 1):
        loss = 2 / step + rng.random() / 10
        shared = {"grad_norm": 9 / step, "lr": 3e-4, "seconds": 5 + rng.random(), "tokens_per_second": 700.0}
        run.log({"stage": "priming", "step": step, "cross_entropy": loss, **shared})
    kept: dict[int, tuple[list[dict[str, Any]], dict[str, float]]] = {}
    for step in range(1, steps + 1):
        turn = step * 4 // steps
        if turn not in kept:  # a step's episodes are made a few times; other steps repeat them with other numbers
            engine = ScriptedEngine(tokenizer, replies(skill * (0.5 + turn / 8), extra))
            chosen = train[2 * turn : 2 * turn + 2]
            found = asyncio.run(collect(engine, prompts, chosen, recipe, step))
            kept[turn] = sample_records(found.episodes, prompts, step, recipe.log.samples, True), found.metrics
        records, metrics = kept[turn]
        write_samples(folder / "samples" / f"grpo-{step:06d}.parquet", [row | {"train_step": step} for row in records])
        run.log({"stage": "grpo", "step": step, **_step(metrics, step, steps, rng)})
    results = {}
    labels = [("before", 0.2), ("after_priming", 0.4), (f"step-{steps // 2}", 0.5), ("after", skill)]
    for label, value in labels if finished else labels[:2]:
        engine = ScriptedEngine(tokenizer, replies(value, extra))
        results[label] = asyncio.run(evaluate(engine, held_out, recipe, label))
        results[label].save(folder / "eval" / f"{label}.json")
    seconds = {"evaluation before": 40.0, "priming": 30.0, "grpo": 20.0 * steps}
    (folder / "seconds.json").write_text(json.dumps(seconds))
    if finished:
        write_summary(folder, summarise(results, recipe, seconds))
    return folder


def _documents(folder: Path, extra: str, passages: int) -> tuple[list[TrainingDocument], list[TrainingDocument]]:
    place = folder / "documents"
    place.mkdir()
    splits = ("train", "held_out")
    made = [[document(number, split, passages, extra) for number in range(12)] for split in splits]
    writers = [store.DocumentWriter(place, split) for split in store.SPLITS]
    for writer, documents in zip(writers, made, strict=True):
        for one in documents:
            writer.write(one)
        writer.close()
    store.publish(place, writers, {})
    return made[0], made[1]


def _step(metrics: dict[str, float], step: int, steps: int, rng: random.Random) -> dict[str, float]:
    shaped = {name: value * (1 + rng.gauss(0, 0.05)) for name, value in metrics.items() if "groups" not in name}
    groups: Sequence[str] = [name for name in metrics if "groups" in name]
    return shaped | {name: metrics[name] for name in groups} | {
        "reward": metrics.get("reward", 0.0) + math.log1p(10 * step / steps) + rng.gauss(0, 0.3),
        "kl": 0.02 * step / steps * (1 + rng.random()),
        "entropy": 1.2 - 0.5 * step / steps + rng.gauss(0, 0.02),
        "grad_norm": 0.8 + rng.random() / 3,
        "clip_fraction": rng.random() / 50,
        "seconds": 20 + rng.random(),
        "tokens_per_second": 900 + 50 * rng.random(),
    }  # fmt: skip
