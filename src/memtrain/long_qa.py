"""``memtrain qa``: a question file and lengths in, scores by length out, beside their controls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.corpus.counting import token_counter
from memtrain.errors import UserError
from memtrain.evaluation.long_qa import KINDS, NO_LENGTH, draw_texts, evaluate, summary
from memtrain.evaluation.qa_metrics import GAIN, KEPT, METRICS, TITLES
from memtrain.pipeline import load_engine
from memtrain.qa.haystack import HaystackMaker
from memtrain.qa.questions import QuestionSet, read_passages, read_questions
from memtrain.recipe import Recipe
from memtrain.report.console import Screen, print_grid
from memtrain.report.plots import by_length
from memtrain.report.summary import cell, markdown_table, write_whole


def run(
    recipe: Recipe, questions: Path, passages: Sequence[Path], lengths: Sequence[int], number: int, out: Path
) -> None:
    """Draw questions, make their haystacks, read and answer them, and write ``qa.json``, ``qa.md`` and ``qa.png``."""
    if not lengths or min(lengths) < 1 or number < 1:
        raise UserError("memtrain qa needs at least one question and lengths of at least 1 token")
    found = read_questions(questions)
    pool = [passage for file in passages for passage in read_passages(file)] or found.passages()
    usable = [question for question in found.questions if question.gold and question.complete]
    if not usable:
        raise UserError(f"question file {questions} has no gold paragraphs to hide in a long text; give one that has")
    with Screen(f"memtrain qa {recipe.model.name}") as screen:
        for line in _left_out(found, len(usable), questions):
            screen.note(line)
        engine = load_engine(recipe, screen)
        count = token_counter(engine.tokenizer)
        maker = HaystackMaker(pool, count)
        screen.stage("haystacks", min(number, len(usable)) * len(lengths))
        asked, too_long = draw_texts(usable, maker, lengths, number, recipe.seed, screen.advance)
        if too_long:
            screen.note(f"{questions.name}: {too_long} questions left out: gold paragraphs over {min(lengths)} tokens")
        screen.stage("reading", len(asked))
        records = asyncio.run(evaluate(engine, asked, recipe, count, screen.advance))
    result: dict[str, Any] = {
        "model": Path(recipe.model.name).name,
        "questions": questions.name,
        "n": len(asked) // len(lengths),
        "seed": recipe.seed,
        "memory": recipe.memory.model_dump(mode="json"),
        "skipped": dict(found.skipped),
        "summary": summary(records, recipe.eval.bootstrap, recipe.seed),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "qa.json", json.dumps(result | {"records": records}, ensure_ascii=False, indent=1))
    rows = rows_of(result["summary"])
    write_whole(out / "qa.md", _markdown(rows, result))
    by_length(result["summary"], "exact", f"{result['questions']}, {result['model']}", out / "qa.png")
    print_grid(rows, [f"{kind} ({length} tokens, n = {n})" for kind, length, n, *_ in rows[1:]], lead=3, width=20)
    Console().print(Text(f"records: {out / 'qa.json'}   table: {out / 'qa.md'}   plot: {out / 'qa.png'}"))


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """Head and rows: kind, length, n, every metric with its interval."""
    names = (*METRICS, "answered", KEPT, GAIN)
    rows = [["answers from", "tokens", "n", *(TITLES[name] for name in names)]]
    for kind in KINDS:
        for length, values in found.get(kind, {}).items():
            shown = "-" if length == NO_LENGTH else f"{length:,}"
            cells = [cell(values[name]) for name in names]
            rows.append([kind, shown, str(values["exact"]["n"]), *cells])
    return rows


def _left_out(found: QuestionSet, usable: int, file: Path) -> list[str]:
    lines = [f"{file.name}: {count} records left out: {reason}" for reason, count in found.skipped.items()]
    missing = len(found.questions) - usable
    if missing:
        lines.append(f"{file.name}: {missing} of {len(found.questions)} questions left out: gold paragraphs missing")
    return lines


def _markdown(rows: list[list[str]], result: dict[str, Any]) -> str:
    line = f"{result['model']} on {result['questions']}, {result['n']} questions, seed {result['seed']}; "
    line += "mean and 95% bootstrap interval over questions."
    return "\n".join([line, "", markdown_table(rows)]) + "\n"
