"""``memtrain export``: from a run, a checkpoint or a model folder to a folder that others can load, read and trust."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

from memtrain.errors import UserError
from memtrain.publish import gguf, hub
from memtrain.publish.card import Facts, write_card
from memtrain.publish.folder import check_target, whole_folder, write_checksums
from memtrain.publish.origin import Origin, origin_of
from memtrain.publish.results import data_facts, draw, numbers
from memtrain.publish.scrub import public_recipe, public_summary
from memtrain.publish.source import RECIPE, Source, above, find
from memtrain.publish.weights import Dtype, Format, Written, write_adapter, write_merged
from memtrain.report.console import Screen
from memtrain.report.summary import versions, write_summary


@dataclass(frozen=True)
class Wishes:
    """What the user asked for."""

    checkpoint: str | None = None
    """One of a run's, by name, or ``latest``."""
    format: Format = "merged"
    """merged: whole weights; adapter: LoRA alone."""
    dtype: Dtype = "auto"
    """Type of the weights."""
    base: str | None = None
    """Base model as the hub knows it, where the run does not say."""
    licence: str | None = None
    """The hub's name of the licence, where the base does not say."""
    gguf: str | None = None
    """Also a GGUF file of this type."""
    llama_cpp: Path | None = None
    """Folder of llama.cpp."""
    push_to_hub: str | None = None
    """Repository."""
    private: bool = False
    """Of a repository that is made."""
    overwrite: bool = False
    """Replace an earlier export."""


def export(folder: Path, out: Path | None, wishes: Wishes) -> Path:
    """Write the export and return its folder. Everything that can be refused is refused before the weights are read.

    Raises :class:`UserError` for what the user can mend; a full disk or a kill leaves nothing half.
    """
    source = find(folder, wishes.checkpoint)
    origin = _origin(source, wishes)
    run = source.facts if source.facts not in (None, source.weights) else None
    target = out or (run or above(source.weights)) / "export"
    base = _check(source, origin, wishes, target)
    converter = gguf.find_converter(wishes.llama_cpp) if wishes.gguf else None
    try:
        with Screen(f"memtrain export → {target}") as screen, whole_folder(target) as part:
            screen.stage("weights", 0)
            if wishes.format == "adapter":
                revision = source.recipe.model.revision if source.recipe is not None and origin.is_hub else None
                written = write_adapter(source, part, wishes.dtype, base, revision)
            else:
                written = write_merged(source, part, wishes.dtype)
            screen.stage("model card", 0)
            title = (wishes.push_to_hub or target.name).rpartition("/")[2]
            file = f"{title}-{wishes.gguf.upper()}.gguf" if wishes.gguf else ""
            _describe(source, origin, wishes, written, part, title, file)
            if converter is not None and wishes.gguf is not None:
                screen.stage("GGUF", 0)
                gguf.convert(converter, part, part / file, wishes.gguf, title)
            screen.stage("checksums", 0)
            write_checksums(part)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UserError(f"{target} cannot be written ({error.strerror}); choose another --out folder") from None
        raise
    return target


def push(folder: Path, wishes: Wishes) -> str:
    """Upload a finished export; returns the repository's address."""
    assert wishes.push_to_hub is not None
    with Screen(f"memtrain export → {wishes.push_to_hub}") as screen:
        screen.stage("upload", 0)
        return hub.push(folder, wishes.push_to_hub, wishes.private)


def _origin(source: Source, wishes: Wishes) -> Origin:
    if source.recipe is not None:
        found = origin_of(source.recipe.model.name)
    else:
        found = Origin(source.weights.name, None, None, "", False)
    if wishes.base is None:
        return found
    return Origin(wishes.base, wishes.base, found.licence, found.note, found.is_hub and wishes.base == found.hub_id)


def _check(source: Source, origin: Origin, wishes: Wishes, target: Path) -> str:
    """Refuse what cannot be done; returns the base that an adapter's config shall name (merged: nothing)."""
    if wishes.private and wishes.push_to_hub is None:
        raise UserError("--private belongs to --push-to-hub REPO; add that, or leave it out")
    keep = (source.weights, *([source.facts] if source.facts is not None else []))
    check_target(target, wishes.overwrite, keep)
    if wishes.push_to_hub is not None:
        hub.check(wishes.push_to_hub)
    if wishes.format == "merged":
        return ""
    if wishes.gguf is not None:
        raise UserError("--gguf needs whole weights; use --format merged, or leave out --gguf")
    if not source.is_adapter:
        raise UserError(f"{source.weights} holds whole weights, since the run trained all of them; use --format merged")
    if wishes.base is None and not origin.is_hub:
        raise UserError(
            f"the adapter belongs to the weights of {origin.name}, which others cannot load by that name; use --format "
            "merged, or say with --base OWNER/NAME which model on the hub has the same weights"
        )
    return str(wishes.base or origin.hub_id)


def _describe(
    source: Source, origin: Origin, wishes: Wishes, written: Written, part: Path, title: str, file: str
) -> None:
    """Recipe, numbers, pictures and card, beside the weights."""
    from transformers import AutoTokenizer

    recipe, data = source.recipe, numbers(source)
    base = origin.hub_id if origin.is_hub and origin.hub_id is not None else origin.name
    shown = public_recipe(recipe, base) if recipe is not None else {}
    if recipe is not None:
        (part / RECIPE).write_text(json.dumps(shown, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    data = public_summary(data)
    if data:
        write_summary(part, data)
    pictures = draw(source, data, part)
    write_card(
        Facts(
            title=title,
            name=wishes.push_to_hub or title,
            origin=origin,
            licence=wishes.licence or origin.licence,
            written=written,
            checkpoint=source.weights.name if source.position is not None and not source.is_end else "",
            recipe=recipe,
            public_recipe=shown,
            summary=data,
            manifest=data_facts(source),
            tokenizer=AutoTokenizer.from_pretrained(part),
            pictures=pictures,
            gguf=file,
            versions=versions(),
        ),
        part,
    )
