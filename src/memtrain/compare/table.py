"""From answers to the numbers of the table: pure functions, every interval and test over questions.

A question's score is its mean over seeds (and lengths, for the average), so intervals say how much other questions
would move the number; how much other seeds would is said by listing them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.compare.rows import BASE, BOTH, DIFFERENCES, LONGER, MEMTRAIN, TASK, TITLES
from memtrain.evaluation.long_qa import READER
from memtrain.evaluation.qa_metrics import GAIN, KEPT, METRICS, contains
from memtrain.evaluation.search_qa import SEARCHER
from memtrain.evaluation.statistics import Estimate, clustered, paired_difference, sign_flip_p

Answers = dict[str, dict[int, list[dict[str, Any]]]]
"""Row -> seed -> records of ``evaluation.long_qa``."""
PRIMARY = "exact"
"""What the difference is judged by: the published verifier's exact match."""
AGENTS = frozenset({READER, SEARCHER})
"""Kinds of answers that the rows are about; all others are controls."""
AVERAGE = 0
"""Length under which the mean over lengths stands."""
MAIN = (BASE, MEMTRAIN, TASK, BOTH, LONGER)


def numbers(answers: Answers, resamples: int, seed: int) -> dict[str, Any]:
    """Everything that the report shows, as plain data: ``rows``, ``differences``, ``controls``, ``ablations``."""
    main = [row for row in MAIN if row in answers]
    others = [row for row in answers if row not in MAIN]
    pairs = [(first, second) for first, second in DIFFERENCES if first in answers and second in answers]
    ablated = [(row, BOTH if row.endswith("-task") else MEMTRAIN) for row in others]
    return {
        "primary": PRIMARY,
        "rows": {row: row_numbers(answers[row], resamples, seed) for row in main},
        "ablations": {row: row_numbers(answers[row], resamples, seed) for row in others},
        "differences": [difference(answers, *pair, resamples, seed) for pair in pairs],
        "ablation_differences": [difference(answers, *pair, resamples, seed) for pair in ablated],
        "controls": {row: controls(answers[row], resamples, seed) for row in main},
    }


def row_numbers(by_seed: Mapping[int, Sequence[dict[str, Any]]], resamples: int, seed: int) -> dict[int, Any]:
    """``{length: {metric: estimate}}`` of the reader; :data:`AVERAGE` is the mean over lengths."""
    records = of_agents(by_seed)
    lengths = sorted({record["length"] for record in records})
    found: dict[int, dict[str, Estimate]] = {}
    for length in (AVERAGE, *lengths):
        chosen = [record for record in records if length in (AVERAGE, record["length"])]
        found[length] = {name: clustered(chosen, name, resamples, seed) for name in (*METRICS, "answered", KEPT, GAIN)}
    return found


def controls(by_seed: Mapping[int, Sequence[dict[str, Any]]], resamples: int, seed: int) -> dict[str, Any]:
    """``{control: {metric: estimate}}`` over all lengths at which the control could be asked."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in (record for records in by_seed.values() for record in records):
        if record["kind"] not in AGENTS:
            found.setdefault(record["kind"], []).append(record)
    return {
        kind: {name: clustered(records, name, resamples, seed) for name in (*METRICS, GAIN)}
        for kind, records in sorted(found.items())
    }


def difference(answers: Answers, row: str, against: str, resamples: int, seed: int) -> dict[str, Any]:
    """``row`` minus ``against`` on the average over lengths, paired by question: estimate by metric, p of the primary
    one (paired sign-flip test), and the difference of each seed that both rows have."""
    first, second = of_agents(answers[row]), of_agents(answers[against])
    shared = sorted(set(answers[row]) & set(answers[against]))
    return {
        "row": row,
        "against": against,
        "metrics": {name: paired_difference(second, first, name, resamples, seed) for name in (*METRICS, KEPT, GAIN)},
        "p": sign_flip_p(second, first, PRIMARY, seed),
        "by_seed": {
            str(number): paired_difference(
                of_agents({number: answers[against][number]}),
                of_agents({number: answers[row][number]}),
                PRIMARY,
                resamples,
                seed,
            )["mean"]
            for number in shared
        },
    }


def of_agents(by_seed: Mapping[int, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Records of the reader or searcher, of all seeds, with what their last memory kept."""
    return [
        {KEPT: contains(record["memory"], record["gold"]), **record} if "memory" in record else record
        for records in by_seed.values()
        for record in records
        if record["kind"] in AGENTS
    ]


def title(row: str) -> str:
    """The row's name in the report; of an ablation: what was changed."""
    if row in TITLES:
        return TITLES[row]
    return f"{row.removesuffix('-task')} + task RL" if row.endswith("-task") else row
