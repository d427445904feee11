"""Training documents with their readings, from the rollouts that a run kept in ``samples/``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.errors import UserError
from memtrain.report.html.load import RunData
from memtrain.report.html.sources import Reading, Text, documents_of, probe_of, spread
from memtrain.report.run_files import is_number
from memtrain.report.show import ends, read_rows, steps_of
from memtrain.tasks.verifier import exact_match
from memtrain.types import TrainingDocument

SAMPLED_STEPS = 12
"""Steps whose rollouts are read."""
TRAJECTORIES = 3
"""Of a group: the best, the one in the middle, the worst."""
LEAST_CHUNK = 20
"""Signs that a chunk found in a prompt must have, unless the text ends there."""
FACTS = {"reward": "reward", "final answer": "e2e_reward", "recall": "recall_reward", "advantage": "advantage"}
_MEMORY = re.compile(r"<memory>(.*?)(?:</memory>|$)", re.DOTALL | re.IGNORECASE)


def rollouts(run: RunData) -> list[Text]:
    """The sampled training documents: a few steps, evenly spaced, of each the groups that were kept."""
    files = steps_of((run.path / "samples").glob("*.parquet"))
    steps = sorted(files)
    groups: list[tuple[int, str, list[dict[str, Any]]]] = []
    for step in [steps[place] for place in spread(len(steps), SAMPLED_STEPS)]:
        try:
            rows = read_rows(files[step])
        except (UserError, OSError) as error:
            run.notes.append(str(error))
            continue
        by_group: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if isinstance(row.get("trajectory_id"), str) and isinstance(row.get("text"), str):
                by_group.setdefault(str(row.get("group_id", "")), []).append(row)
        groups += [(step, name, found) for name, found in by_group.items()]
    documents = documents_of(run, "train", {name for _, name, _ in groups})
    return [_rollout(step, name, rows, documents.get(name)) for step, name, rows in groups]


def _rollout(step: int, name: str, rows: Sequence[dict[str, Any]], document: TrainingDocument | None) -> Text:
    members: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        members.setdefault(row["trajectory_id"], []).append(row)
    ranked = sorted(members.values(), key=lambda found: -_number(found[0].get("reward")))
    places = sorted({0, (len(ranked) - 1) // 2, len(ranked) - 1})[:TRAJECTORIES]
    words = {0: "best", len(ranked) - 1: "worst"} if len(ranked) > 1 else {}
    gold = str(rows[0].get("answer") or "")
    golds = [gold, *(document.aliases if document else ())] if gold else []
    readings = [_trajectory(ranked[place], words.get(place, "middle" if words else ""), golds) for place in places]
    writes = _writes(ranked[0])
    prompts = [str(row.get("prompt", "")) for row in writes]
    chunks = chunks_in_prompts(document.text, prompts) if document else None
    return Text(
        f"step {step}: {name}",
        f"{document.n_tokens:,} tokens" if document else "",
        chunks or [ends(prompt) for prompt in prompts],
        heading="chunk" if chunks else "prompt",
        golds=golds,
        entities=[mention.text for mention in document.mentions] if document else [],
        readings=readings,
        of=len(ranked),
    )


def _writes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    writes = [row for row in rows if row.get("kind") in ("write", "search")]
    return sorted(writes, key=lambda row: _number(row.get("step")))


def _trajectory(rows: Sequence[dict[str, Any]], rank: str, golds: Sequence[str]) -> Reading:
    writes = _writes(rows)
    said = next((row["text"] for row in rows if row.get("kind") == "answer"), None)
    index = str(rows[0]["trajectory_id"]).rpartition("/")[2]
    facts = {name: rows[0].get(key) for name, key in FACTS.items()}
    asked = rows[0].get("probes")
    probes = [_sampled_probe(probe) for probe in asked] if isinstance(asked, list) else []
    return Reading(
        f"trajectory {index}" + (f", {rank}" if rank else ""),
        [memory_of(row) for row in writes],
        cut=[row.get("stop_reason") == "length" for row in writes],
        probes=[probe for probe in probes if probe is not None],
        answer=said,
        right=exact_match(said, golds) == 1.0 if said is not None and golds else None,
        facts=facts,
        missing="" if asked or not is_number(rows[0].get("recall_reward")) else "This run did not keep its probes.",
    )


def _sampled_probe(probe: object) -> dict[str, Any] | None:
    if not isinstance(probe, dict):
        return None
    named = probe_of(probe | {"gold": probe.get("answer"), "answer": None})
    return named and named | {"reward": probe.get("reward"), "measure": "reward"}


def memory_of(row: Mapping[str, Any]) -> str:
    """What a turn left as memory: all of a write, of a searcher's turn what stands between its tags."""
    text = str(row["text"])
    found = _MEMORY.findall(text) if row.get("kind") == "search" else []
    return found[-1].strip() if found else text


def chunks_in_prompts(text: str, prompts: Sequence[str]) -> list[str] | None:
    """The chunks of a document, from the prompts that showed them one after the other; None where they are not there.

    A chunk is a slice of the text that begins where the last one ended, so it is the longest slice that a prompt holds.
    """
    chunks, begin = [], 0
    for prompt in prompts:
        while begin < len(text) and text[begin].isspace():
            begin += 1
        low, high = begin, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if text[begin:middle].rstrip() in prompt else (low, middle - 1)
        if low - begin < LEAST_CHUNK and low < len(text.rstrip()):
            return None
        chunks.append(text[begin:low].rstrip())
        begin = low
    return chunks or None


def _number(value: object) -> float:
    return float(value) if is_number(value) else 0.0  # type: ignore[arg-type]
