"""``memtrain lm-eval``: tasks of lm-eval in, scores with intervals out.

The scores are lm-eval's own, by its own metrics; what is added is ``n``, the 95% bootstrap interval over documents
where a score is a mean over them, and that a request which failed counts as wrong whatever the metric makes of it.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.errors import UserError, first_line
from memtrain.evaluation.flat_prompt import SplitRule
from memtrain.evaluation.statistics import estimate
from memtrain.lm_eval_model import MemTrainLM
from memtrain.pipeline import load_engine
from memtrain.recipe import Recipe
from memtrain.report.console import Screen, print_grid
from memtrain.report.summary import cell, markdown_table, write_whole

HEAD = ["task", "metric", "n", "score", "failed"]
KEPT = ("results", "groups", "configs", "versions", "n-shot", "n-samples", "higher_is_better")
"""What goes into the result file of what lm-eval tells."""


def run(
    recipe: Recipe,
    tasks: Sequence[str],
    out: Path,
    limit: int | None = None,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    metadata: str = "{}",
    split: Mapping[str, Any] | None = None,
) -> None:
    """Run tasks and write ``lm-eval.json``, ``lm-eval.md`` and ``samples.jsonl``.

    ``metadata`` is the JSON object that lm-eval's tasks read their settings from, for example
    ``{"max_seq_lengths": [4096]}``; the model's tokenizer goes in by itself. ``split`` has the fields of
    :class:`SplitRule` that are not to be the defaults; None stands for a default. Raises :class:`UserError` for a task
    that is unknown or whose data cannot be had.
    """
    from lm_eval.tasks import TaskManager

    rule = SplitRule(**{key: value for key, value in (split or {}).items() if value is not None})
    extra = _object(metadata)
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include-path {include_path} is no folder; give the one with your task's .yaml file")
    title = f"memtrain lm-eval {recipe.model.name}"
    with tempfile.TemporaryDirectory() as folder, Screen(title) as screen:
        screen.stage("looking for tasks", 0)
        # RULER's makers measure their texts with a tokenizer, which they look for in a folder.
        manager = TaskManager(
            include_path=str(include_path) if include_path else None, metadata={"tokenizer": folder, **extra}
        )
        names = task_names(tasks, manager)
        engine = load_engine(recipe, screen)
        engine.tokenizer.save_pretrained(folder)
        lm = MemTrainLM(engine, recipe, rule, screen)
        screen.stage(f"preparing {', '.join(names)}", 0)
        found = evaluate(lm, names, manager, limit, num_fewshot)
        if lm.failures:
            screen.note(f"{len(lm.failures)} documents failed, the first: {next(iter(lm.failures.values()))}")
    scores = scores_of(found, lm.failures, recipe.eval.bootstrap, recipe.seed)
    result = {
        "model": Path(recipe.model.name).name,
        "tasks": names,
        "limit": limit,
        "seed": recipe.seed,
        "rule": asdict(rule),
        "memory": recipe.memory.model_dump(mode="json"),
        "scores": scores,
        "failed": [{"task": task, "document": number, "error": e} for (task, number), e in lm.failures.items()],
        "lm_eval": {key: found[key] for key in KEPT if key in found},
    }
    rows = [HEAD, *([s["task"], s["metric"], str(s["score"]["n"]), cell(s["score"]), str(s["failed"])] for s in scores)]
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "lm-eval.json", json.dumps(result, ensure_ascii=False, indent=1, default=str))
    lines = [json.dumps(line, ensure_ascii=False, default=str) for line in _samples(found, lm)]
    write_whole(out / "samples.jsonl", "".join(line + "\n" for line in lines))
    said = f"{result['model']}, seed {recipe.seed}; mean and 95% bootstrap interval over documents."
    write_whole(out / "lm-eval.md", "\n".join([said, "", markdown_table(rows)]) + "\n")
    print_grid(rows, [f"{row[0]}, {row[1]} (n = {row[2]})" for row in rows[1:]], lead=3, width=10)
    Console().print(Text(f"records: {out / 'lm-eval.json'}, {out / 'samples.jsonl'}   table: {out / 'lm-eval.md'}"))


def evaluate(
    lm: MemTrainLM, tasks: Sequence[str], manager: Any, limit: int | None = None, num_fewshot: int | None = None
) -> dict[str, Any]:
    """What lm-eval's ``simple_evaluate`` returns, ``samples`` included.

    Raises :class:`UserError` where the tasks fail before the model is asked for anything: then it is their data.
    """
    from lm_eval import simple_evaluate

    seed = lm.recipe.seed
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some tasks print while they make their data
            found = simple_evaluate(
                model=lm,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                bootstrap_iters=0,  # intervals are ours
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    except UserError:
        raise
    except Exception as error:
        if lm.asked:
            raise
        raise UserError(
            f"lm-eval cannot prepare {', '.join(tasks)} ({type(error).__name__}: {first_line(error)}); docs/lm-eval.md "
            "says which tasks need a hub, an extra package or --metadata"
        ) from error
    assert found is not None  # None is for ranks above 0 of a distributed run
    return dict(found)


def scores_of(
    found: Mapping[str, Any], failures: Mapping[tuple[str, int], str], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """One line a task, filter and metric: ``task``, ``metric``, ``score`` (mean, ci95, n) and ``failed`` documents.

    Where lm-eval's value is the mean of the documents' values, the interval is the bootstrap's over them, and a failed
    document is 0 (in metrics where higher is better); elsewhere (a corpus BLEU, a group) lm-eval's value stands alone.
    """
    lines = []
    for task, samples in found["samples"].items():
        higher = found.get("higher_is_better", {}).get(task, {})
        failed = {number for name, number in failures if name == task}
        for chosen in dict.fromkeys(sample["filter"] for sample in samples):
            rows = [sample for sample in samples if sample["filter"] == chosen]
            for metric in dict.fromkeys(name for row in rows for name in row["metrics"]):
                told = found["results"][task].get(f"{metric},{chosen}")
                # RULER's metrics are named by lengths; -1 marks a document of another length.
                asked = [row for row in rows if metric in row and not (metric.isdigit() and row[metric] == -1)]
                values = [row[metric] for row in asked]
                if not values:
                    continue
                score = {"mean": told, "ci95": [None, None], "n": len(values)}
                if _is_mean(told, values):
                    zero = failed if higher.get(metric, True) is not False else set()
                    score = estimate(
                        [
                            0.0 if row["doc_id"] in zero else float(value)
                            for row, value in zip(asked, values, strict=True)
                        ],
                        resamples,
                        seed,
                    )
                title = metric if chosen == "none" else f"{metric} ({chosen})"
                lines.append({"task": task, "metric": title, "score": score, "failed": len(failed)})
    for group, values in found.get("groups", {}).items():
        for key, value in values.items():
            metric, comma, _ = key.partition(",")
            if comma and "_stderr" not in metric and isinstance(value, int | float) and value != -1:
                score = {"mean": float(value), "ci95": [None, None], "n": values.get("sample_len", 0)}
                lines.append({"task": group, "metric": metric, "score": score, "failed": 0})
    return lines


def _is_mean(told: Any, values: Sequence[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if not isinstance(told, int | float) or len(numbers) < len(values):
        return False
    return math.isclose(told, sum(numbers) / len(numbers), rel_tol=1e-6, abs_tol=1e-9)


def _samples(found: Mapping[str, Any], lm: MemTrainLM) -> list[dict[str, Any]]:
    """One line a document: what was asked, what the memory held, what was said, what it scored."""
    return [
        {
            "task": task,
            "document": sample["doc_id"],
            **lm.told.get((task, sample["doc_id"]), {}),
            "replies": sample["resps"],
            "target": sample["target"],
            "filter": sample["filter"],
            "scores": {metric: sample[metric] for metric in sample["metrics"]},
            "error": lm.failures.get((task, sample["doc_id"])),
        }
        for task, samples in found["samples"].items()
        for sample in samples
    ]


def task_names(tasks: Sequence[str], manager: Any) -> list[str]:
    """The tasks asked for, patterns resolved; files stay as they are. Raises :class:`UserError` for unknown ones."""
    names = []
    for task in tasks:
        matched = [task] if Path(task).is_file() else list(manager.match_tasks([task]))
        if not matched:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}" if near else "`lm_eval ls tasks` lists all of them"
            raise UserError(f"lm-eval knows no task {task!r}: {hint}; tasks of your own need --include-path FOLDER")
        names += matched
    return list(dict.fromkeys(names))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"--metadata {text!r} is no JSON object; for example '{{\"max_seq_lengths\": [4096]}}'")
    return value
