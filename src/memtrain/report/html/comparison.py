"""The tables of ``memtrain compare``, as far as its ``compare.json`` has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memtrain.evaluation.qa_metrics import GAIN, KEPT, METRICS, TITLES
from memtrain.report.html.charts import glyph
from memtrain.report.html.load import COMPARISON
from memtrain.report.html.markup import Child, Html, join, tag
from memtrain.report.html.tables import NOTHING, estimate_cell, signed_cell, table
from memtrain.report.run_files import is_number


def comparison(folder: Path) -> Html | None:
    """Rows by lengths, and what was tested; None where the folder is no comparison or its file is not whole."""
    try:
        data = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))
        return _tables(folder.name, data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _tables(name: str, data: dict[str, Any]) -> Html:
    primary = data["primary"]
    lengths = list(dict.fromkeys(length for found in data["rows"].values() for length in found))
    texts = sorted((length for length in lengths if length != "0"), key=int)
    ends = ["0"] if "0" in lengths else []
    head: list[Child] = ["", *(f"{int(length):,} tokens" for length in texts), *("average" for _ in ends)]
    rows: list[list[Child]] = [
        [row, *(estimate_cell(_estimate(found, length, primary)) for length in (*texts, *ends))]
        for row, found in data["rows"].items()
    ]
    said = f"{data.get('kind', '')} questions of {data.get('questions', '')}, model {data.get('model', '')}"
    parts = [
        tag("h3", f"{name}: {TITLES.get(primary, primary)} by length"),
        tag("p", said, class_="lead"),
        table(head, rows, f"rows of {name}"),
    ]
    names = [metric for metric in (*METRICS, KEPT, GAIN) if metric in TITLES]
    if ends:
        measured: list[list[Child]] = [
            [row, *(estimate_cell(_estimate(found, "0", metric)) for metric in names)]
            for row, found in data["rows"].items()
        ]
        title = "Every metric, average over lengths"
        parts += [tag("h3", title), table(["", *(TITLES[metric] for metric in names)], measured, title)]
    tested: list[list[Child]] = []
    for found in data.get("differences", []):
        values = [found["metrics"].get(metric) for metric in names]
        cells: list[Child] = [
            [signed_cell(value), glyph(value, 1)] if value and is_number(value.get("mean")) else NOTHING
            for value in values
        ]
        p = f"{found['p']:.3f}" if is_number(found.get("p")) else NOTHING
        tested.append([f"{found['row']} − {found['against']}", *cells, p])
    if tested:
        title = "Differences, paired by question, average over lengths"
        parts += [tag("h3", title), table(["", *(TITLES[metric] for metric in names), "p"], tested, title)]
    return join(parts)


def _estimate(found: dict[str, Any], length: str, metric: str) -> dict[str, Any] | None:
    value = found.get(length, {}).get(metric)
    return value if isinstance(value, dict) else None
