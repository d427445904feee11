"""Readings as the viewer takes them, whatever file of a run they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtrain.corpus.store import Documents, Split, split_path
from memtrain.errors import UserError
from memtrain.report.html.load import RunData
from memtrain.report.run_files import is_number
from memtrain.types import TrainingDocument


@dataclass
class Reading:
    """One trajectory over a text."""

    label: str
    """``before``, ``after``, ``trajectory 3, best``..."""
    memories: list[str]
    """m[first_step..T]."""
    first_step: int = 1
    cut: list[bool] = field(default_factory=list)
    """Which of the memories ended at the limit."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    """``step``, ``chunk``, ``gold``, and as far as known ``answer``, ``right`` (True, False, None), ``reward``."""
    answer: str | None = None
    right: bool | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    """What the run did not keep, in a sentence."""


@dataclass
class Text:
    """One document with everything that read it."""

    id: str
    about: str
    chunks: list[str]
    whole: bool = False
    """Whether the chunks' borders are unknown, and the text stands as one."""
    heading: str = "chunk"
    """What a chunk is: ``chunk``, or ``prompt`` where only that was kept."""
    golds: list[str] = field(default_factory=list)
    """The hidden entity and its accepted spellings."""
    entities: list[str] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    of: int = 0
    """Trajectories there were."""


def spread(total: int, n: int) -> list[int]:
    """``n`` places of ``total``, evenly spaced, the first and the last among them."""
    if n >= total:
        return list(range(total))
    return sorted({round(place * (total - 1) / (n - 1)) for place in range(n)}) if n > 1 else [0]


def probe_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A probe as :class:`Reading` lists it, from a record of an evaluation; None where it is none."""
    step, chunk, gold = row.get("step"), row.get("chunk"), row.get("gold")
    if not (isinstance(step, int) and isinstance(chunk, int) and isinstance(gold, str) and 0 <= chunk < step):
        return None
    right = bool(row["recall_em"]) if is_number(row.get("recall_em")) else None
    answer = str(row["answer"]) if row.get("answer") is not None else None
    found = {"step": step, "chunk": chunk, "gold": gold, "answer": answer, "right": right}
    return found | {"reward": row.get("recall_likelihood_gain"), "measure": "gain"}


def documents_of(run: RunData, split: Split, names: Iterable[str]) -> dict[str, TrainingDocument]:
    """The documents of these ids, as far as the run keeps them."""
    path: Path = split_path(run.path / "documents", split)
    wanted = set(names)
    if not wanted or not path.is_file():
        return {}
    try:
        import pyarrow.parquet as pq

        ids = pq.read_table(path, columns=["id"])["id"].to_pylist()
        documents = Documents(path)
        return {name: documents[place] for place, name in enumerate(ids) if name in wanted}
    except (UserError, OSError, ValueError, KeyError) as error:
        run.notes.append(str(error) if isinstance(error, UserError) else f"{path} is damaged and left out")
        return {}
