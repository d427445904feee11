"""``memtrain plan``: what a recipe would cost, by the formulas of ``docs/plan.md``, before anything is spent."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from memtrain.corpus import documents as corpus_documents
from memtrain.corpus import store
from memtrain.errors import UserError
from memtrain.planning import calibrate, communication, cost, hardware, remedies, table
from memtrain.planning import memory as planned_memory
from memtrain.planning.calibrate import Calibration
from memtrain.planning.compute import Training
from memtrain.planning.cost import Assumptions, Place
from memtrain.planning.hardware import Device
from memtrain.planning.made_up import passage_tokens
from memtrain.planning.models import ModelShape, shape_of
from memtrain.planning.result import CompareRow, OnDevice, Options, Plan
from memtrain.planning.stages import Line, Sources, memtrain_stage, qa_stage, training_of
from memtrain.planning.work import Work
from memtrain.recipe import Recipe
from memtrain.report.console import Screen
from memtrain.report.summary import write_whole
from memtrain.rl.checkpoint import RunFolder

BUILT_FOR_MEASURE = 1000
"""Most training documents that ``--measure`` builds."""


def run(recipe: Recipe, options: Options, out: Path | None = None) -> None:
    """Reckon, print, and write ``out`` where asked for."""
    found = plan(recipe, options)
    table.show(found)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(table.as_json(found), indent=1))


def plan(recipe: Recipe, options: Options) -> Plan:
    """The plan of a recipe. Raises :class:`UserError` for an unknown device, model, assumption, or a wrong number."""
    devices, stages = _checked(recipe, options)
    assumed = Assumptions().changed(list(options.assume))
    shape, tokenizer = shape_of(recipe.model)
    sources, calibration, notes = Sources.of(shape, tokenizer), None, list[str]()
    if tokenizer is None:
        notes.append("tokens are estimated, one for six letters begun: the model's tokenizer is not at hand")
    if recipe.qa.questions and recipe.qa.kind == "search":
        notes.append("search QA, its training and its rows of the comparison, is not planned")
    with Screen(f"memtrain plan {recipe.name}") as screen:
        if options.measure:
            sources, calibration = _measured(recipe, sources, screen)
        elif (built := _built(recipe)) is not None:
            sources = replace(sources, train=built[0], held_out=built[1])
        if sources.train is None:
            notes.append("documents are made up, as long as the settings say: none are built yet")
        screen.stage("playing the stages on paper", 2 + len(recipe.compare.ablations))
        lines = _lines(recipe, stages, sources, assumed, screen.advance)
        rows = _rows(recipe, lines, sources, assumed, screen.advance) if "compare" in stages else []
    on = [_on(device, None, recipe, shape, lines, rows, assumed, options) for device in devices]
    if calibration is not None:
        on.insert(0, _on(calibration.device, calibration, recipe, shape, lines, rows, assumed, options))
    notes += remedies.sentences(recipe, shape, lines, on, options.devices)
    notes += communication.sentences(
        recipe.model.name, [(one.place.device, one.place.devices, one.fits, one.workers) for one in on]
    )
    disk, traffic = _disk(recipe, shape, sources, lines), communication.traffic(shape, lines)
    return Plan(recipe, shape, assumed, options, lines, rows, disk, on, notes, traffic)


def _checked(recipe: Recipe, options: Options) -> tuple[list[Device], Sequence[str]]:
    if options.devices < 1:
        raise UserError(f"--devices is {options.devices}; at least one device must do the work")
    if options.carbon < 0 or (options.price is not None and options.price < 0):
        raise UserError("--price-per-hour and --kwh-carbon must not be below zero")
    if recipe.qa.kind == "search" and set(options.stages) & {"qa", "compare"}:
        raise UserError('memtrain plan knows long-text QA only; set qa.kind = "long", or plan --stage memtrain alone')
    whole = recipe.qa.questions and recipe.qa.kind == "long"
    stages = options.stages or (("memtrain", "qa", "compare") if whole else ("memtrain",))
    return [hardware.device(name) for name in options.names], stages


def _lines(
    recipe: Recipe, stages: Sequence[str], sources: Sources, assumed: Assumptions, tick: Callable[[], None]
) -> list[Line]:
    from memtrain.task_training import task_recipe

    lines = []
    if "memtrain" in stages or "compare" in stages:
        lines += memtrain_stage(recipe, sources, assumed)
    tick()
    if "qa" in stages or "compare" in stages:
        lines += qa_stage(recipe, task_recipe(recipe), sources, assumed)
    tick()
    return lines


def _rows(
    recipe: Recipe, lines: list[Line], sources: Sources, assumed: Assumptions, tick: Callable[[], None]
) -> list[CompareRow]:
    """Rows of the comparison in the order in which they are run; the base model is measured once."""
    from memtrain.compare.rows import BASE, BOTH, LONGER, MEMTRAIN, TASK, TITLES, variants

    ours = [line for line in lines if line.stage == "memtrain"]
    asked = [line for line in lines if line.stage == "qa" and not line.trains]
    task = [line for line in lines if line.stage == "qa"]
    seeds = len(recipe.compare.seeds)
    rows = [
        CompareRow(TITLES[BASE], asked),
        CompareRow(TITLES[TASK], task, seeds),
        CompareRow(TITLES[MEMTRAIN], [*ours, *asked], seeds),
        CompareRow(TITLES[BOTH], task, seeds),
    ]
    if recipe.compare.equal_compute:
        rows.append(CompareRow(TITLES[LONGER], asked, seeds, longer=True))
    for variant in variants(recipe)[1:]:
        stage = memtrain_stage(variant.recipe, sources, assumed)
        tick()
        rows.append(CompareRow(f"ablation: {variant.name}, then task RL", [*stage, *asked, *task], seeds))
    return rows


def _on(
    device: Device,
    calibration: Calibration | None,
    recipe: Recipe,
    shape: ModelShape,
    lines: list[Line],
    rows: list[CompareRow],
    assumed: Assumptions,
    options: Options,
) -> OnDevice:
    devices = 1 if calibration else options.devices
    wanted = recipe.sampler.max_sequences or (64 if device.is_cpu else 256)
    needs = {
        id(line): planned_memory.memory(shape, line.work, line.training, device, devices, wanted)
        for line in [*lines, *(line for row in rows for line in row.lines)]
    }

    def seconds(line: Line) -> dict[str, float]:
        believed = calibration.of(line.kind, assumed) if calibration else assumed
        place = Place(device, devices, wanted, needs[id(line)].cache)
        return cost.seconds(line.work, shape, line.training, place, believed)

    spent = [seconds(line) for line in lines]
    training = sum(
        sum(one.values()) for one, line in zip(spent, lines, strict=True) if line.trains and line.stage == "memtrain"
    )
    by_row = [
        row.times * (sum(sum(seconds(line).values()) for line in row.lines) + (training if row.longer else 0.0))
        for row in rows
    ]
    total = sum(by_row) if rows else sum(sum(one.values()) for one in spent)
    most = max(needs.values(), key=lambda need: need.peak)
    place = Place(device, devices, wanted, most.cache)
    return OnDevice(
        place=place,
        need=most,
        fits=all(planned_memory.fits(need, device) for need in needs.values()),
        seconds=spent,
        rows=by_row,
        bill=cost.bill(total, place, assumed, options.carbon, options.price),
        measured=calibration.seconds if calibration else {},
        efficiencies={k: asdict(v) for k, v in calibration.assumed.items()} if calibration else {},
        workers=communication.ways(shape, lines, device, devices, wanted, assumed),
    )


def _disk(recipe: Recipe, shape: ModelShape, sources: Sources, lines: list[Line]) -> dict[str, float]:
    if sources.train is None:
        tokens = passage_tokens(recipe) * float(1 + recipe.documents.related + recipe.documents.random)
    else:
        some = [sources.train[place].n_tokens for place in range(min(64, len(sources.train)))]
        tokens = sum(some) / len(some)
    drawn = Work.total([line.work for line in lines if line.trains and line.stage == "memtrain"]).text_tokens
    return planned_memory.disk(shape, recipe, training_of(recipe), tokens, drawn)


def _built(recipe: Recipe) -> tuple[Sequence[Any], Sequence[Any]] | None:
    """Documents of an earlier run or build of the same settings."""
    folder = Path("runs") / recipe.name / "documents"
    manifest = store.read_manifest(folder)
    alike = recipe.model_dump(mode="json", include={"corpus", "entities", "documents"})
    if manifest is None or manifest.get("recipe") != alike or manifest.get("seed") != recipe.seed:
        return None
    return tuple(corpus_documents.open_documents(folder, split) for split in ("train", "held_out"))  # type: ignore


def _measured(recipe: Recipe, sources: Sources, screen: Screen) -> tuple[Sources, Calibration]:
    """Real steps of each stage on this machine; the documents they are made from serve the plan too."""
    from memtrain.pipeline import load_engine

    few = recipe.documents.model_copy(update={"train": min(recipe.documents.train, BUILT_FOR_MEASURE)})
    small = recipe.model_copy(update={"documents": few, "log": recipe.log.model_copy(update={"samples": 0})})
    with tempfile.TemporaryDirectory() as temporary:
        run = RunFolder(Path(temporary))
        engine = load_engine(small, screen, training=True)
        built = _built(recipe)
        if built is None:
            screen.stage("documents", 0)
            corpus_documents.build(small, run.path / "documents", progress=screen.inner)
            train, held_out = (corpus_documents.load(run.path / "documents", split) for split in ("train", "held_out"))
        else:
            train, held_out = (list(documents[:BUILT_FOR_MEASURE]) for documents in built)
        seen = calibrate.measure(small, engine, train, held_out, run, screen)
    device = calibrate.this_device(engine)
    training = training_of(recipe)
    width = engine.loaded.model.dtype.itemsize if hasattr(engine, "loaded") else training.weight_bytes
    place = Place(device, 1, recipe.sampler.max_sequences or (64 if device.is_cpu else 256))
    exact = Training(training.lora_rank, training.checkpointing, training.reference, width)
    found = calibrate.calibrate(seen, sources.shape, exact, place)
    lengths = found.lengths.get("grpo") or found.lengths.get("evaluation")
    return replace(sources, tokenizer=engine.tokenizer, train=train, held_out=held_out, lengths=lengths), found
