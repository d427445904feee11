"""The model card: README.md of an exported folder. Everything in it was measured or read from the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtrain.evaluation.metrics import METRICS
from memtrain.publish import usage
from memtrain.publish.limits import limits
from memtrain.publish.origin import Origin, corpus_licence, hub_dataset
from memtrain.publish.results import PICTURES
from memtrain.publish.scrub import local_name, public
from memtrain.publish.weights import Written
from memtrain.recipe import Recipe
from memtrain.report.summary import STAGES, headline, markdown_table, table

PAPER = "https://arxiv.org/abs/2606.03197"


@dataclass(frozen=True)
class Facts:
    """All that the card tells."""

    title: str
    """Heads the card."""
    name: str
    """What the commands call the folder: a repository on the hub, or the folder's name."""
    origin: Origin
    """The base model."""
    licence: str | None
    """The hub's name of a licence; None where none is known."""
    written: Written
    """The weights."""
    checkpoint: str
    """Which one was exported; empty for a run's final model."""
    recipe: Recipe | None
    """The run's own."""
    public_recipe: dict[str, Any]
    """The same, fit to be shown; empty where there is none."""
    summary: dict[str, Any]
    """As :func:`memtrain.publish.results.numbers` gives it, fit to be shown."""
    manifest: dict[str, Any]
    """Of the run's documents; empty where unknown."""
    tokenizer: Any
    """The exported one."""
    pictures: Sequence[str] = ()
    """Files in the folder."""
    gguf: str = ""
    """File in the folder; empty where there is none."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of what wrote the folder."""


def write_card(facts: Facts, folder: Path) -> None:
    """Write README.md."""
    sections = [
        f"# {facts.title}",
        _what(facts),
        _use(facts),
        _data(facts),
        _recipe(facts),
        _curves(facts),
        _results(facts),
        limits(facts.recipe, facts.summary, facts.manifest),
        _environment(facts),
    ]
    text = "\n\n".join(section for section in sections if section)
    (folder / "README.md").write_text(f"{_metadata(facts)}\n\n{text}\n", encoding="utf-8")


def _metadata(facts: Facts) -> str:
    """The YAML head that the hub reads; what is not known is left out."""
    from huggingface_hub import ModelCardData

    adapter = facts.written.lora_rank > 0
    tags = ["memtrain", "memory", "long-context", "grpo", *(["lora"] if adapter else [])]
    if facts.gguf:
        tags.append("gguf")
    dataset = hub_dataset(facts.recipe.corpus.source) if facts.recipe is not None else None
    data = ModelCardData(
        base_model=facts.origin.hub_id,
        license=facts.licence,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
        datasets=[dataset] if dataset else None,
        base_model_relation=("adapter" if adapter else "finetune") if facts.origin.hub_id else None,
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _what(facts: Facts) -> str:
    base = _linked(facts.origin.hub_id) if facts.origin.hub_id else f"`{facts.origin.name}`"
    kind = f"A LoRA adapter (rank {facts.written.lora_rank}) of" if facts.written.lora_rank else "A version of"
    steps = ""
    if facts.recipe is not None:
        parts = [(facts.recipe.priming.steps, "of priming"), (facts.recipe.train.steps, "of GRPO")]
        steps = " and ".join(f"{number} steps {what}" for number, what in parts if number)
        steps = f" Trained for {steps}." if steps else ""
    lines = [
        f"{kind} {base} that was trained to read a long text piece by piece and to keep what matters in a memory of "
        f"bounded size. The training needs no labels: entities of the text are hidden and asked for from the memory "
        f"([MemTrain]({PAPER}), masked reconstruction and intermediate recall, optimised with GRPO).{steps}",
        f"{facts.written.parameters:,} weights in {facts.written.dtype}.",
    ]
    if facts.checkpoint:
        lines.append(f"This is the checkpoint `{facts.checkpoint}` of the run, not necessarily its end.")
    lines.append(facts.origin.note)
    if facts.licence is None:
        lines.append("No licence is stated here: that of the base model was not known to the tool that wrote this.")
    return "## What it is\n\n" + "\n\n".join(line for line in lines if line)


def _use(facts: Facts) -> str:
    llama = f"With llama.cpp: `llama-server -m {facts.gguf}`." if facts.gguf else ""
    if facts.recipe is None:
        sizes = "The folder loads with transformers. Chunk and memory sizes of the training are not recorded here."
        return "\n\n".join(part for part in ("## How to use it", sizes, llama) if part)
    settings, adapter = facts.recipe.memory, facts.written.lora_rank > 0
    write, answer = usage.prompt_texts(facts.tokenizer, settings)
    found = usage.program(facts.name, facts.tokenizer, settings, adapter)
    parts = [
        "## How to use it",
        "With memtrain, from this folder (`hf download NAME --local-dir FOLDER` fetches one from the hub):",
        usage.commands(facts.name, settings),
    ]
    parts += [
        *([llama] if llama else []),
        f"Sections of at most {settings.chunk_tokens:,} tokens, memories of at most {settings.memory_tokens:,}, "
        f"answers of at most {settings.answer_tokens:,}. A memory update was prompted like this, the reply being the "
        "new memory:",
        _fenced(write),
        "An answer from the memory alone:",
        _fenced(answer),
    ]
    if found is not None:
        parts += [
            f"<details><summary>The same with {'peft' if adapter else 'transformers'} alone</summary>",
            f"```python\n{found}```",
            "</details>",
        ]
    return "\n\n".join(parts)


def _data(facts: Facts) -> str:
    recipe = facts.recipe
    if recipe is None:
        return "## Data\n\nWhat the model was trained on is not recorded in the folder that was exported."
    source, corpus = recipe.corpus.source, facts.manifest.get("corpus", {})
    licence = corpus_licence(source)
    dataset = hub_dataset(source)
    rows = [["corpus", _linked(dataset, "datasets/") if dataset else f"`{local_name(source)}`"]]
    rows.append(["licence", licence or "not known to the tool that wrote this; see the corpus itself"])
    if corpus.get("bytes"):
        rows.append(["size", f"{corpus['bytes']:,} bytes"])
    if corpus.get("sha256"):
        rows.append(["sha256", f"`{corpus['sha256']}`"])
    report = facts.manifest.get("report", {})
    if report.get("pages"):
        rows.append(["read", f"{report['passages']:,} passages from {report['pages']:,} pages"])
    for split, title in (("train", "training documents"), ("held_out", "held-out documents")):
        found = report.get("splits", {}).get(split)
        if found:
            rows.append([title, f"{found['documents']:,}, {found['tokens']:,} tokens"])
    rows.append(["entities found by", public(str(report.get("finder", recipe.entities.finder)))])
    text = markdown_table(rows)
    if not facts.manifest:
        return f"## Data\n\n{text}\n\nThe folder with the built documents was not at hand: no checksum."
    return (
        f"## Data\n\n{text}\n\nDocuments are made of passages of the corpus, one entity hidden everywhere. Held-out "
        "documents come from pages that training never saw (by hash of the title)."
    )


def _recipe(facts: Facts) -> str:
    if not facts.public_recipe:
        return ""
    lines: list[str] = []
    defaults = Recipe().model_dump(mode="json")
    for section, values in facts.public_recipe.items():
        if not isinstance(values, dict):
            if values != defaults.get(section):
                lines.append(f"{section} = {json.dumps(values, ensure_ascii=False)}")
            continue
        changed = {key: value for key, value in values.items() if value != defaults.get(section, {}).get(key)}
        if changed and section not in ("qa", "compare"):
            lines += ["", f"[{section}]"]
            lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items()]
    whole = json.dumps(facts.public_recipe, indent=2, ensure_ascii=False)
    return (
        "## Recipe\n\nWhat differs from memtrain's defaults (the published values):\n\n```toml\n"
        + "\n".join(lines).strip()
        + "\n```\n\n<details><summary>The whole recipe (memtrain.json)</summary>\n\n```json\n"
        + whole
        + "\n```\n\n</details>"
    )


def _curves(facts: Facts) -> str:
    if "curves.png" not in facts.pictures:
        return ""
    return f"## Training\n\n![{PICTURES['curves.png']}](curves.png)"


def _results(facts: Facts) -> str:
    stages = [stage for stage in STAGES if stage in facts.summary]
    if not stages:
        return "## Results\n\nThese weights have not been evaluated: there is nothing to report."
    parts = ["## Results"]
    if "after" in stages:
        parts.append(
            "Proxy tasks on held-out documents: means with 95% intervals (bootstrap over documents); n is the number "
            "of documents. Differences are paired by document. Closed book: the same question without any memory."
            + (f" Memories were drawn at temperature {facts.recipe.eval.temperature:g}." if facts.recipe else "")
        )
        parts.append("\n".join(f"- {line}" for line in headline(facts.summary).splitlines()))
    else:
        parts.append(
            "**These very weights have not been evaluated.** What was measured earlier in the run, on held-out "
            "documents (means with 95% intervals, bootstrap over documents; n is the number of documents):"
        )
    head, *rows = table(facts.summary)
    judged = {metric.title for metric in METRICS.values() if metric.better}
    main, others = ([row for row in rows if (row[0] in judged) == wanted] for wanted in (True, False))
    parts.append(markdown_table([head, *(_stacked(row) for row in main)]))
    if others:
        title = "Controls and lengths, which are neither good nor bad"
        found = markdown_table([head, *(_stacked(row) for row in others)])
        parts.append(f"<details><summary>{title}</summary>\n\n{found}\n\n</details>")
    names = [name for name in ("before_after.png", "recall_by_distance.png") if name in facts.pictures]
    parts += [f"![{PICTURES[name]}]({name})" for name in names]
    return "\n\n".join(part for part in parts if part)


def _stacked(row: Sequence[str]) -> list[str]:
    """Intervals below their means, unbroken: nine columns fit a page."""
    return [
        cell if place < 3 else cell.replace(", ", ",&nbsp;").replace(" [", "<br>[") for place, cell in enumerate(row)
    ]


def _environment(facts: Facts) -> str:
    rows = []
    machine, versions = facts.summary.get("machine", {}), facts.summary.get("versions", {})
    if machine:
        parts = [machine.get("processor"), f"{machine['cores']} cores" if machine.get("cores") else None]
        parts += [f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else None, machine.get("gpu")]
        rows.append(["trained on", ", ".join(str(part) for part in parts if part)])
    if versions:
        rows.append(["trained with", ", ".join(f"{name} {version}" for name, version in versions.items())])
    if facts.summary.get("seconds"):
        seconds = facts.summary["seconds"].items()
        rows.append(["seconds", ", ".join(f"{stage} {value:,.0f}" for stage, value in seconds)])
    if facts.summary.get("tokens_sampled"):
        rows.append(["tokens sampled", f"{facts.summary['tokens_sampled']:,}"])
    if facts.summary.get("fingerprint"):
        rows.append(["recipe's fingerprint", f"`{facts.summary['fingerprint']}`"])
    rows.append(["exported with", ", ".join(f"{name} {version}" for name, version in facts.versions.items())])
    return (
        f"## Environment\n\n{markdown_table(rows)}\n\n`SHA256SUMS` has the checksum of every file: "
        "`sha256sum --check SHA256SUMS`."
    )


def _linked(hub_id: str | None, kind: str = "") -> str:
    return f"[{hub_id}](https://huggingface.co/{kind}{hub_id})"


def _fenced(text: str) -> str:
    mark = "```"
    while mark in text:
        mark += "`"
    return f"{mark}text\n{text}\n{mark}"
