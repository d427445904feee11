"""``memtrain suite``: label-free tasks made from the corpus's held-out pages, at lengths, beside their controls."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.corpus.counting import token_counter
from memtrain.corpus.documents import split_passages
from memtrain.corpus.entities import EntityFinder, make_finder
from memtrain.corpus.readers import ReadReport, read_passages
from memtrain.errors import UserError
from memtrain.evaluation.after_reading import HIDDEN, LATER, NAME, Exam, make_exam
from memtrain.evaluation.long_qa import NO_LENGTH
from memtrain.evaluation.ruler.sample import Sample
from memtrain.evaluation.ruler.scoring import METRICS
from memtrain.evaluation.ruler.tasks import TASKS, RulerMaker
from memtrain.evaluation.suites import AVERAGE, KINDS, Summary, cost_of_not_knowing, evaluate, summary, with_room
from memtrain.pipeline import load_engine
from memtrain.recipe import Recipe
from memtrain.report.console import Screen, print_grid
from memtrain.report.suite_plots import by_task
from memtrain.report.summary import cell, markdown_table, write_whole
from memtrain.types import MASK_TOKEN, TARGET_TOKEN, Passage

ALL_TASKS = (*TASKS, NAME)
TITLES = {
    "match_all": "answers found",
    "match_part": "any found",
    "exact": "exact match",
    "f1": "F1",
    "answered": "boxed",
}
HOW_TO_READ = (
    "`answers found` is RULER's score (string_match_all): the share of the expected strings that stand in the boxed "
    "answer, or in the whole reply where nothing is boxed. Mean and 95% bootstrap interval over texts."
)


def run(recipe: Recipe, tasks: Sequence[str], lengths: Sequence[int], number: int, out: Path) -> None:
    """Make the texts, read and answer them, and write ``suites.json``, ``suites.md`` and ``suites.png``."""
    tasks, lengths = tuple(dict.fromkeys(tasks)), sorted(set(lengths))
    _check(tasks, lengths, number)
    recipe = with_room(recipe)
    with Screen(f"memtrain suite {recipe.model.name}") as screen:
        screen.stage("corpus", 0)
        passages, finder = _held_out(recipe, screen)
        engine = load_engine(recipe, screen)
        count = token_counter(engine.tokenizer)
        samples, exams = _draw(RulerMaker(passages, count), finder, recipe, tasks, lengths, number, screen)
        screen.stage("reading", len(samples) + len(exams))
        records = asyncio.run(evaluate(engine, samples, exams, recipe, count, screen.advance))
    result: dict[str, Any] = {
        "model": Path(recipe.model.name).name,
        "corpus": recipe.corpus.source,
        "tasks": list(tasks),
        "lengths": lengths,
        "number": number,
        "seed": recipe.seed,
        "memory": recipe.memory.model_dump(mode="json"),
        "temperature": recipe.eval.temperature,
        "summary": summary(records, recipe.eval.bootstrap, recipe.seed),
        "cost_of_not_knowing": cost_of_not_knowing(records, recipe.eval.bootstrap, recipe.seed),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "suites.json", json.dumps(result | {"records": records}, ensure_ascii=False, indent=1))
    rows = rows_of(result["summary"])
    write_whole(out / "suites.md", markdown(rows, result))
    by_task(result["summary"], KINDS, "match_all", out / "suites.png")
    titles = [f"{task}, {kind} ({length} tokens, n = {n})" for task, kind, length, n, *_ in rows[1:]]
    print_grid(rows, titles, lead=4, width=16)
    console = Console()
    for line in sentences_of(result["cost_of_not_knowing"]):
        console.print(Text(line), soft_wrap=True)
    console.print(
        Text(f"records: {out / 'suites.json'}   table: {out / 'suites.md'}   plot: {out / 'suites.png'}"),
        soft_wrap=True,
    )


def rows_of(found: Summary) -> list[list[str]]:
    """Head and rows: task, kind, length, n, every metric that any task has, with its interval."""
    cells = [
        (task, kind, length, values) for task, by in found.items() for kind in by for length, values in by[kind].items()
    ]
    metrics = [name for name in METRICS if any(name in values for *_, values in cells)]
    rows = [["task", "answers from", "tokens", "n", *(TITLES[name] for name in metrics)]]
    for task, kind, length, values in cells:
        shown = "-" if length == NO_LENGTH else f"{length:,}"
        n = str(values["match_all"]["n"])
        rows.append([task, kind, shown, n, *(cell(values.get(name)) for name in metrics)])
    return rows


def sentences_of(cost: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """What it costs the reader not to know the question, a sentence a task and length."""
    return [
        f"{task}, {length:,} tokens: asked after reading instead of before it, answers found change by "
        f"{cell(values['match_all'])} (paired by text, n = {values['match_all']['n']})"
        for task, by_length in cost.items()
        for length, values in by_length.items()
    ]


def markdown(rows: list[list[str]], result: Mapping[str, Any]) -> str:
    """The table as a page of its own."""
    lines = [
        f"{result['model']} on label-free tasks over {result['corpus']} (held-out pages), {result['number']} texts a "
        f"task and length, seed {result['seed']}. {HOW_TO_READ}"
    ]
    if AVERAGE in result["summary"]:
        lines.append(f"`{AVERAGE}`: all samples of the RULER tasks above together.")
    lines += ["", markdown_table(rows)]
    cost = sentences_of(result["cost_of_not_knowing"])
    if cost:
        lines += ["", f'Asked after reading, the reader was told: "{LATER}"', "", *(f"- {line}" for line in cost)]
    return "\n".join(lines) + "\n"


def _check(tasks: Sequence[str], lengths: Sequence[int], number: int) -> None:
    if not tasks or not lengths or lengths[0] < 1 or number < 1:
        raise UserError("memtrain suite needs at least one task, lengths of at least 1 token and a --number above 0")
    for task in tasks:
        if task not in ALL_TASKS:
            near = difflib.get_close_matches(task, ALL_TASKS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"--tasks: no task is called {task!r}: {hint}there are {', '.join(ALL_TASKS)}")


def _held_out(recipe: Recipe, screen: Screen) -> tuple[list[Passage], EntityFinder]:
    """Passages of held-out pages, without those that spell a mask token themselves, and what finds their entities."""
    report = ReadReport()
    passages = [
        passage
        for passage in read_passages(recipe.corpus, report, screen.inner)
        if MASK_TOKEN not in passage.text and TARGET_TOKEN not in passage.text
    ]
    held_out = split_passages(passages, recipe.corpus.held_out)["held_out"]
    if not held_out:
        raise UserError(
            f"corpus {recipe.corpus.source}: none of its {report.pages} pages falls on the held-out side; raise "
            f"corpus.held_out, now {recipe.corpus.held_out}, or give more pages"
        )
    screen.note(f"noise: {len(held_out):,} passages of held-out pages of {recipe.corpus.source}")
    return held_out, make_finder(recipe.entities.finder, held_out, report.aliases)


def _draw(
    maker: RulerMaker,
    finder: EntityFinder,
    recipe: Recipe,
    tasks: Sequence[str],
    lengths: Sequence[int],
    number: int,
    screen: Screen,
) -> tuple[list[Sample], list[Exam]]:
    """All texts; one error names the length that would do for every one of a task."""
    for task in tasks:
        special = HIDDEN if task == NAME else None
        least = max(maker.smallest(task, index, recipe.seed, special) for index in range(number))
        if lengths[0] < least:
            raise UserError(
                f"--lengths {lengths[0]}: texts of {task} need {least} tokens for what they must hold; give lengths of "
                f"at least {least}"
            )
    screen.stage("texts", len(tasks) * len(lengths) * number)
    samples, exams = list[Sample](), list[Exam]()
    for task in tasks:
        for tokens in lengths:
            for index in range(number):
                if task == NAME:
                    exams.append(make_exam(maker, finder, recipe.entities, tokens, index, recipe.seed))
                else:
                    samples.append(maker.make(task, tokens, index, recipe.seed))
                screen.advance()
    return samples, exams
