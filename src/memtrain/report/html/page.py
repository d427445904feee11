"""The page: everything in one file, which asks no network for anything and lets nothing else run in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from memtrain.errors import UserError
from memtrain.report.console import Screen
from memtrain.report.html import sections
from memtrain.report.html.comparison import comparison
from memtrain.report.html.load import RunData, find_runs, load_runs
from memtrain.report.html.markup import Child, Html, json_block, tag
from memtrain.report.html.memories import viewer_data
from memtrain.report.summary import version_of


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the report about these run folders to one HTML file and return its path.

    A comparison's folder stands for all runs in it. Raises :class:`UserError` where a folder holds no run, nothing of
    it can be read, or the file cannot be written.
    """
    if not runs:
        raise UserError("name the folder of a run, for example memtrain report runs/demo")
    if out.is_dir():
        raise UserError(f"{out} is a folder; give --out the name of a file, for example {out / 'report.html'}")
    with Screen(f"memtrain report → {out}") as screen:
        folders = find_runs(runs)
        screen.stage("reading runs", len(folders))
        loaded = load_runs(folders, screen.advance)
        screen.stage("memories", 2 * len(loaded))
        data = viewer_data(loaded, screen.advance)
        screen.stage("page", 0)
        compared = [section for folder in runs if (section := comparison(folder))]
        if not loaded and not compared:
            raise UserError(f"{runs[0]} holds a comparison that cannot be read; run the same memtrain compare again")
        whole = page(loaded, data, compared)
        for run in loaded:
            for note in run.notes:
                screen.note(f"{run.name}: {note}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(out.name + ".part")
        # Text cut in the middle of a character has halves that UTF-8 cannot say.
        part.write_bytes(whole.encode("utf-8", "replace"))
        part.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give another file with --out") from None
    return out


def page(runs: Sequence[RunData], viewer: dict[str, Any], compared: Sequence[Html] = ()) -> Html:
    """The document. ``viewer``: as :func:`memories.viewer_data` gives it; ``compared``: tables of comparisons."""
    style, script = _packaged("page.css"), _packaged("page.js")
    drawn, chart_data = sections.curves(runs)
    parts: list[tuple[str, str, Child]] = [
        ("overview", "Overview", sections.overview(runs)),
        ("comparison", "Comparison", list(compared) or None),
        ("results", "Before and after", sections.results(runs)),
        ("curves", "Curves", drawn),
        ("memories", "Memories", sections.viewer(viewer)),
        ("settings", "Settings", sections.settings(runs)),
        ("steps", "Steps", sections.steps(runs)),
    ]
    parts = [part for part in parts if part[2]]
    title = f"memtrain report: {', '.join(run.name for run in runs) or 'comparison'}"
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, _ in parts]
    blocks = [
        tag("section", tag("h2", name) if anchor != "overview" else None, content, id=anchor)
        for anchor, name, content in parts
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        Html(f"<style>{style}</style>"),
    )
    body = tag(
        "body",
        tag("a", "To the content", href="#overview", class_="skip"),
        tag("header", tag("div", tag("b", "memtrain"), tag("nav", links, aria_label="sections")), class_="top"),
        tag("main", blocks),
        tag("footer", f"memtrain {version_of('memtrain') or ''}. This file needs no network and holds no other file."),
        tag("div", id="tip", role="status", hidden=True),
        json_block("chart-data", chart_data),
        json_block("viewer-data", viewer),
        Html(f"<script>{script}</script>"),
    )
    return Html(f"<!doctype html>\n{tag('html', head, body, lang='en')}\n")


def policy(style: str, script: str) -> str:
    """Content security policy: this very style and script, and nothing else."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _packaged(name: str) -> str:
    return (resources.files("memtrain.report.html") / name).read_text(encoding="utf-8")
