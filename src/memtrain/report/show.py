"""Documents, probes and rollouts of a run or folder, printed for a person to read."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from memtrain.corpus import store
from memtrain.errors import UserError
from memtrain.report.console import QuietConsole, number
from memtrain.tasks.recall import draw_probes
from memtrain.types import MASK_TOKEN, TARGET_TOKEN, Mention, TrainingDocument

What = Literal["documents", "probes", "rollouts"]
MENTIONS_SHOWN = 20
CONTEXT_CHARS = 160
"""Text on each side of a mask."""
PROMPT_CHARS = 1200
"""Of a long prompt: so much of its beginning and of its end."""
_MASKS = re.compile(f"{re.escape(MASK_TOKEN)}|{re.escape(TARGET_TOKEN)}")


def show(
    folder: Path,
    what: What = "documents",
    n: int = 2,
    step: int | None = None,
    split: store.Split = "train",
    console: Console | None = None,
) -> None:
    """Print ``n`` things of a run (or of a folder of built documents). Raises UserError where they are not there."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a run or of built documents")
    if n < 1:
        raise UserError(f"--n is {n}: it must be at least 1")
    console = console or QuietConsole()
    if what == "rollouts":
        show_rollouts(folder, n, step, console)
        return
    documents = find_documents(folder, split)
    if what == "documents":
        show_documents(documents, n, console)
    else:
        show_probes(documents, n, console)


def find_documents(folder: Path, split: store.Split) -> store.Documents:
    """The documents of a build, or of a run that keeps its own. Raises UserError where there is no finished build."""
    for place in (folder, folder / "documents"):
        if store.read_manifest(place) is not None:
            return store.Documents(store.split_path(place, split))
    raise UserError(f"{folder} holds no finished build of documents: run memtrain build or memtrain train first")


def show_documents(documents: Sequence[TrainingDocument], n: int, console: Console) -> None:
    """Facts and masked sentences of the first ``n`` documents."""
    for document in documents[:n]:
        console.print(Rule(Text(f"{document.id} of {len(documents)} documents")))
        facts = {
            "hidden": f"{document.answer} ({document.answer_kind}), {document.n_masks} times",
            "aliases": ", ".join(document.aliases) or "none",
            "size": f"{document.n_tokens:,} tokens, {len(document.passage_ids)} passages, pivot {document.pivot_id}",
            "seed": str(document.seed),
            "mentions": mentions_line(document.mentions),
        }
        for name, value in facts.items():
            console.print(Text.assemble((f"{name:9}", "dim"), value))
        for piece in around_masks(document.text):
            console.print(highlighted(piece), soft_wrap=False)


def mentions_line(mentions: Sequence[Mention]) -> str:
    """How many, of what kinds, and the first few."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(mention.kind for mention in mentions).most_common())
    first = "; ".join(mention.text for mention in mentions[:MENTIONS_SHOWN])
    more = f"; and {len(mentions) - MENTIONS_SHOWN} more" if len(mentions) > MENTIONS_SHOWN else ""
    return f"{len(mentions)} ({kinds}): {first}{more}" if mentions else "none"


def around_masks(text: str, context: int = CONTEXT_CHARS) -> list[str]:
    """The text around every mask, cut at words, overlaps joined; dots where something is left out."""
    ranges: list[list[int]] = []
    for match in _MASKS.finditer(text):
        start, end = max(0, match.start() - context), min(len(text), match.end() + context)
        # Whole words only, where the script has spaces near the mask.
        if start:
            start = max(start, text.find(" ", start, match.start()))
        if end < len(text):
            space = text.rfind(" ", match.end(), end)
            end = space if space >= 0 else end
        if ranges and start <= ranges[-1][1]:
            ranges[-1][1] = end
        else:
            ranges.append([start, end])
    return [
        ("… " if start else "") + " ".join(text[start:end].split()) + (" …" if end < len(text) else "")
        for start, end in ranges
    ]


def highlighted(text: str) -> Text:
    """The text with its masks marked; never read as markup."""
    styled = Text(text)
    styled.highlight_regex(_MASKS, "bold reverse")
    return styled


def show_probes(documents: Sequence[TrainingDocument], n: int, console: Console) -> None:
    """One recall probe of each of the first ``n`` documents, taking their passages as chunks."""
    for document in documents[:n]:
        chunks = passages_of(document.text)
        drawn = draw_probes(document, chunks, 1, random.Random(document.seed))
        console.print(Rule(Text(f"{document.id}: {'a probe' if drawn else 'no entity to ask for'}")))
        for probe in drawn:
            about = f"memory {probe.step} is asked for passage {probe.chunk}, {probe.distance} passages ago; answer: "
            console.print(Text.assemble((about, "dim"), (f"{probe.answer} ({probe.kind})", "bold green")))
            console.print(Panel(highlighted(probe.masked_chunk), border_style="dim"))


def passages_of(text: str) -> list[str]:
    """The passages of a document, each with its "Document i:" heading."""
    parts = re.split(r"(?m)^(?=Document \d+:)", text)
    return [part.strip() for part in parts if part.strip()]


def show_rollouts(folder: Path, n: int, step: int | None, console: Console) -> None:
    """Turns of the first ``n`` groups of one step: prompt, what was written, reward, advantage."""
    path = sample_file(folder, step)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(path):
        groups.setdefault(str(row.get("group_id", row.get("document_id", ""))), []).append(row)
    for name, rows in list(groups.items())[:n]:
        console.print(Rule(Text(f"{path.stem}: group {name}")))
        print_group(rows, console)


def print_group(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A group's rows; of what its members share, the prompt is printed once, whole at both ends."""
    shown: set[str] = set()
    for row in rows:
        facts = {name: row[name] for name in FACTS if row.get(name) is not None}
        console.print(Text(", ".join(f"{name} {number(value)}" for name, value in facts.items()), style="bold cyan"))
        prompt = str(row.get("prompt", ""))
        if prompt and prompt not in shown:
            shown.add(prompt)
            console.print(Panel(highlighted(ends(prompt)), title="prompt", title_align="left", border_style="dim"))
        for name in ("completion", "text", "memory"):
            if row.get(name) is not None:
                console.print(Panel(highlighted(str(row[name]) or "(empty)"), title=name, title_align="left"))


FACTS = ("trajectory_id", "kind", "step", "answer", "reward", "e2e_reward", "recall_reward", "advantage", "stop_reason")


def ends(text: str, chars: int = PROMPT_CHARS) -> str:
    """A long text's beginning and end."""
    if len(text) <= 2 * chars:
        return text
    return f"{text[:chars]}\n… {len(text) - 2 * chars:,} characters …\n{text[-chars:]}"


def sample_file(folder: Path, step: int | None) -> Path:
    """The Parquet file of one step's rollouts, the last one by default. Raises UserError naming what there is."""
    found = steps_of((folder / "samples").glob("*.parquet"))
    if not found:
        raise UserError(f"{folder}/samples holds no rollouts; train with log.samples of at least 1")
    if step is None:
        return found[max(found)]
    if step not in found:
        raise UserError(f"{folder}/samples has no step {step}; there are {', '.join(map(str, sorted(found)))}")
    return found[step]


def steps_of(files: Iterable[Path]) -> dict[int, Path]:
    """Files by the last number in their names."""
    numbered = [(re.findall(r"\d+", path.stem), path) for path in sorted(files)]
    return {int(numbers[-1]): path for numbers, path in numbered if numbers}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file. Raises UserError where it is broken."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException:
        raise UserError(f"{path} is not a whole Parquet file; delete it, or show another --step") from None
