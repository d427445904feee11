"""The comparison for a person and for a program: ``compare.md``, ``compare.json``, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.compare.rows import MEMTRAIN, variants
from memtrain.compare.table import AVERAGE, PRIMARY, Answers, numbers, of_agents, title
from memtrain.compare.training import WATCHED, runs_of, training_table
from memtrain.evaluation.qa_metrics import GAIN, KEPT, METRICS, TITLES
from memtrain.evaluation.statistics import Estimate
from memtrain.recipe import Recipe
from memtrain.report.compare_plots import training_curves
from memtrain.report.console import print_grid
from memtrain.report.plots import by_length, read_metrics
from memtrain.report.summary import cell, machine, markdown_table, versions, write_whole

SAMPLES = 4
"""Questions whose last memories are shown, of each row."""
MEMORY_CHARS = 400
Grid = list[list[str]]


def write_report(recipe: Recipe, answers: Answers, out: Path) -> dict[str, Any]:
    """Write all files and print the main table; returns what ``compare.json`` holds."""
    data: dict[str, Any] = {
        "recipe": recipe.name,
        "fingerprint": recipe.fingerprint(),
        "model": recipe.model.name,
        "questions": Path(recipe.qa.questions).name,
        "kind": recipe.qa.kind,
        "seeds": list(recipe.compare.seeds),
        "task_steps": recipe.qa.train.steps,
        "task_lr": recipe.qa.train.lr,
        **numbers(answers, recipe.eval.bootstrap, recipe.seed),
        "training": training_table(out),
        "unchanged": [
            name for name in recipe.compare.ablations if name not in {variant.name for variant in variants(recipe)}
        ],
        "machine": machine(),
        "versions": versions(),
    }
    write_whole(out / "compare.json", json.dumps(data, ensure_ascii=False, indent=1))
    write_whole(out / "compare.md", markdown(data, answers))
    for metric in (PRIMARY, "f1", KEPT, GAIN):
        lines = {
            title(row): {length: values for length, values in found.items() if length != AVERAGE}
            for row, found in data["rows"].items()
        }
        by_length(lines, metric, f"{data['questions']}, {Path(data['model']).name}", out / f"compare-{metric}.png")
    runs = {f"{folder.parent.name}/{folder.name}": read_metrics(folder / "metrics.jsonl") for folder in runs_of(out)}
    training_curves(runs, out / "curves.png")
    for rows in (main_grid(data), difference_grid(data["differences"])):
        print_grid(rows, [row[0] for row in rows[1:]], lead=1, width=24)
    Console().print(Text(f"report: {out / 'compare.md'}   numbers: {out / 'compare.json'}   plots: {out}/*.png"))
    return data


def markdown(data: dict[str, Any], answers: Answers) -> str:
    """The whole report."""
    base = next(iter(data["rows"].values()))[AVERAGE]
    seeds = ", ".join(map(str, data["seeds"]))
    parts = [
        f"# {data['recipe']}: {Path(data['model']).name} on {data['questions']}",
        f"{base[PRIMARY]['n']} questions at each length, seeds {seeds}; {data['task_steps']} steps of task RL at "
        f"lr {data['task_lr']:g} in every row that has it. Mean and 95% bootstrap interval over questions (a "
        "question's score is its mean over seeds). Failed or unboxed answers count as wrong.",
        f"## {TITLES[PRIMARY].capitalize()} by length",
        markdown_table(main_grid(data)),
        "## Every metric, average over lengths",
        markdown_table(metric_grid(data["rows"])),
        "## Differences, paired by question, average over lengths",
        markdown_table(difference_grid(data["differences"])),
        "p: two-sided sign-flip test of exact match over questions. Likelihood gain: how much likelier the first "
        "accepted answer is with the memory than with the question alone; it moves before exact match does.",
        "## Controls: the same models without the memory loop",
        markdown_table(control_grid(data)),
    ]
    if data["ablations"]:
        full = {row: data["rows"][row] for row in (MEMTRAIN, f"{MEMTRAIN}-task") if row in data["rows"]}
        parts += [
            "## Ablations",
            markdown_table(metric_grid(full | data["ablations"])),
            markdown_table(difference_grid(data["ablation_differences"])),
        ]
    if data["unchanged"]:
        parts.append(f"Not run, since the recipe is so already: {', '.join(data['unchanged'])}.")
    parts += ["## Training", "First and last quarter of the steps.", markdown_table(training_grid(data["training"]))]
    parts += ["## Last memories", _memories(answers)]
    return "\n\n".join(parts) + "\n"


def main_grid(data: dict[str, Any]) -> Grid:
    """Rows by lengths, primary metric."""
    lengths = sorted({length for found in data["rows"].values() for length in found})
    head = ["", *(f"{length:,} tokens" if length else "average" for length in (*lengths[1:], AVERAGE)), "n"]
    return [head] + [
        [
            title(row),
            *(cell(found[length][PRIMARY]) for length in (*lengths[1:], AVERAGE)),
            str(found[AVERAGE][PRIMARY]["n"]),
        ]
        for row, found in data["rows"].items()
    ]


def metric_grid(rows: dict[str, Any]) -> Grid:
    """Rows by metrics, average over lengths."""
    names = (*METRICS, "answered", KEPT, GAIN)
    body = [[title(row), *(cell(found[AVERAGE][name]) for name in names)] for row, found in rows.items()]
    return [["", *(TITLES[name] for name in names)], *body]


def difference_grid(differences: Sequence[dict[str, Any]]) -> Grid:
    """What was tested, every metric, p, and each seed."""
    head = ["difference", *(TITLES[name] for name in (*METRICS, KEPT, GAIN)), "p", "n", "by seed"]
    return [head] + [
        [
            f"{title(found['row'])} minus {title(found['against'])}",
            *(_signed(found["metrics"][name]) for name in (*METRICS, KEPT, GAIN)),
            "-" if found["p"] is None else f"{found['p']:.3f}",
            str(found["metrics"][PRIMARY]["n"]),
            ", ".join(f"{value:+.2f}" for value in found["by_seed"].values() if value is not None) or "-",
        ]
        for found in differences
    ]


def control_grid(data: dict[str, Any]) -> Grid:
    """Rows by controls: exact match and F1 beside each other."""
    kinds = list(dict.fromkeys(kind for found in data["controls"].values() for kind in found))
    head = ["", *(f"{kind}: {name}" for kind in kinds for name in ("exact match", "F1"))]
    return [head] + [
        [title(row), *(cell(found[kind][name]) if kind in found else "-" for kind in kinds for name in (PRIMARY, "f1"))]
        for row, found in data["controls"].items()
    ]


def training_grid(rows: Sequence[dict[str, Any]]) -> Grid:
    """Every run and stage."""
    head = ["run", "stage", "steps", "seconds", "groups a step", *(name.replace("_", " ") for name in WATCHED)]
    return [head] + [
        [
            row["run"],
            row["stage"],
            str(row["steps"]),
            f"{row['seconds']:.0f}",
            _number(row["groups"]),
            *(" → ".join(map(_number, row[name])) if name in row else "-" for name in WATCHED),
        ]
        for row in rows
    ]


def _memories(answers: Answers) -> str:
    """The same questions' last memories in every row, at the shortest length."""
    lines = []
    first = of_agents(next(iter(answers.values())))
    shortest = min(record["length"] for record in first)
    for document in [record["document"] for record in first if record["length"] == shortest][:SAMPLES]:
        for row, by_seed in answers.items():
            for record in of_agents(dict([next(iter(by_seed.items()))])):
                if (record["document"], record["length"]) != (document, shortest):
                    continue
                if row == next(iter(answers)):
                    gold = " / ".join(record["gold"])
                    lines.append(f"**{_plain(record['question'])}** (accepted: {_plain(gold)}; {shortest} tokens)")
                memory, said = (_plain(record[key])[:MEMORY_CHARS] for key in ("memory", "answer"))
                lines.append(f"- {title(row)}: memory `{memory}`, answer `{said}`")
    return "\n".join(line if line.startswith("- ") else f"\n{line}\n" for line in lines)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")


def _signed(value: Estimate) -> str:
    return cell(value) if value["mean"] is None or value["mean"] < 0 else f"+{cell(value)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
