"""``memtrain search-qa`` and ``memtrain search-server``; and what task training needs for search QA."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.errors import UserError
from memtrain.evaluation.qa_metrics import GAIN, METRICS, TITLES
from memtrain.evaluation.search_qa import ABOUT, KINDS, NO_LENGTH, SEARCHER, evaluate, failed_share, summary
from memtrain.pipeline import load_engine
from memtrain.qa.questions import Question, read_passages, read_questions
from memtrain.recipe import Recipe
from memtrain.report.console import Screen, print_grid
from memtrain.report.summary import cell, markdown_table, write_whole
from memtrain.search.base import Retriever
from memtrain.search.local import open_index
from memtrain.tasks.search_qa import SearchTask
from memtrain.types import Passage


def tasks_of(questions: Sequence[Question], recipe: Recipe, seed: int) -> list[SearchTask]:
    """Tasks of ``search.questions_at_once`` questions each, put together in an order drawn from the seed.

    With several questions at once, spellings that hold a semicolon cannot be answered in their box: they do not count,
    and a question without any other is left out; so are the last few questions that fill no task. Raises
    :class:`UserError` where no task is left.
    """
    at_once = recipe.search.questions_at_once
    usable = []
    for question in questions:
        spellings = tuple(answer for answer in question.answers if at_once == 1 or ";" not in answer)
        if spellings:
            usable.append((question, spellings))
    random.Random(f"{seed}/search tasks").shuffle(usable)
    tasks = []
    for start in range(0, len(usable) - at_once + 1, at_once):
        part = usable[start : start + at_once]
        name = "+".join(question.id for question, _ in part).replace("/", "_")
        texts, answers = tuple(question.text for question, _ in part), tuple(spellings for _, spellings in part)
        tasks.append(SearchTask(name, texts, answers))
    if not tasks:
        raise UserError(
            f"{len(usable)} questions make no task of {at_once}; give more questions, or lower search.questions_at_once"
        )
    return tasks


def retriever_of(recipe: Recipe, passages: Sequence[Passage]) -> Retriever:
    """The recipe's search engine: the server at ``search.url``, else ``search.index`` over the passages.

    Raises :class:`UserError` where there is neither, and for a missing extra or model. Whether a server answers,
    ``check`` tells.
    """
    if recipe.search.url:
        from memtrain.search.client import HttpRetriever

        return HttpRetriever.of(recipe.search)
    return open_index(recipe.search.index, passages)


def run(recipe: Recipe, questions: Path, passages: Sequence[Path], number: int, out: Path) -> None:
    """Draw questions, search and answer them, and write ``search_qa.json`` and ``search_qa.md``."""
    if number < recipe.search.questions_at_once:
        raise UserError(f"memtrain search-qa needs at least {recipe.search.questions_at_once} questions (one task)")
    found = read_questions(questions)
    chosen = random.Random(f"{recipe.seed}/qa").sample(found.questions, min(number, len(found.questions)))
    tasks = tasks_of(chosen, recipe, recipe.seed)
    with Screen(f"memtrain search-qa {recipe.model.name}") as screen:
        for reason, count in found.skipped.items():
            screen.note(f"{questions.name}: {count} records left out: {reason}")
        screen.stage("search index", 0)
        pool = [] if recipe.search.url else [p for file in passages for p in read_passages(file)] or found.passages()
        retriever = retriever_of(recipe, pool)
        screen.note(f"searching {retriever.name}")
        asyncio.run(retriever.check())  # before minutes are spent on a model
        engine = load_engine(recipe, screen)
        screen.stage("searching", len(tasks))
        try:
            records = asyncio.run(evaluate(engine, retriever, tasks, recipe, screen.advance))
        finally:
            retriever.close()
    result: dict[str, Any] = {
        "model": Path(recipe.model.name).name,
        "questions": questions.name,
        "n": len(tasks),
        "questions_at_once": recipe.search.questions_at_once,
        "retriever": retriever.name,
        "seed": recipe.seed,
        "search": recipe.search.model_dump(mode="json", exclude={"url"}),
        "skipped": dict(found.skipped),
        "failed_searches": failed_share(records),
        "requests": retriever.counts(),
        "summary": summary(records, recipe.eval.bootstrap, recipe.seed),
    }
    _report(result, records, out)


def serve(kind: str, passages: Sequence[Path], folder: Path | None, host: str, port: int) -> None:
    """Serve passages, or the index of a folder, until Ctrl-C; a folder that is not there is made.

    Raises :class:`UserError` where there is nothing to serve, or the port cannot be had.
    """
    from memtrain.search.server import make_app
    from memtrain.search.server import serve as answer_requests

    with Screen("memtrain search-server") as screen:
        screen.stage("reading passages", len(passages))
        read: list[Passage] = []
        for file in passages:
            read += read_passages(file)
            screen.advance()
        screen.stage("search index", 0)
        index = open_index(kind, read, folder)
        app = make_app(index)
    console = Console()
    if host not in ("127.0.0.1", "::1", "localhost"):
        console.print(Text(f"whoever reaches {host} can read the passages: there is no log-in", style="bold"))
    answer_requests(
        app, host, port, lambda address: console.print(Text(f"serving {index.name} at {address} (Ctrl-C ends it)"))
    )


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """Head and rows: kind, n, every metric with its interval, what the searcher did."""
    names = (*METRICS, "answered", GAIN, *ABOUT)
    rows = [["answers from", "n", *(TITLES.get(name, name.replace("_", " ")) for name in names)]]
    for kind in KINDS:
        if kind in found:
            values = found[kind][NO_LENGTH]
            rows.append([kind, str(values["exact"]["n"]), *(cell(values.get(name)) for name in names)])
    return rows


def _report(result: dict[str, Any], records: Sequence[dict[str, Any]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "search_qa.json", json.dumps(result | {"records": records}, ensure_ascii=False, indent=1))
    rows = rows_of(result["summary"])
    line = (
        f"{result['model']} on {result['questions']}, {result['n']} tasks of {result['questions_at_once']} questions, "
        f"{result['retriever']}, seed {result['seed']}; mean and 95% bootstrap interval over tasks."
    )
    warning = _warning(result["failed_searches"])
    parts = [line, *(["", warning] if warning else []), "", markdown_table(rows)]
    write_whole(out / "search_qa.md", "\n".join(parts) + "\n")
    print_grid(rows, [f"{kind} (n = {n} tasks)" for kind, n, *_ in rows[1:]], lead=2, width=24)
    console = Console()
    if warning:
        console.print(Text(warning, style="bold"))
    console.print(Text(f"records: {out / 'search_qa.json'}   table: {out / 'search_qa.md'}"))


def _warning(failed: float) -> str:
    return f"{failed:.0%} of the searches failed: the {SEARCHER} answered without them." if failed else ""
