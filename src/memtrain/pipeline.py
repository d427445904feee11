"""What the commands do: one function a command, each a short road through the rooms.

Stages of a run: documents -> evaluation -> priming -> evaluation -> GRPO -> evaluation -> model, summary, plots. Every
stage leaves a file when it is finished; ``--resume`` starts at the first one that is missing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.assets import model_path
from memtrain.corpus import documents as corpus_documents
from memtrain.errors import UserError
from memtrain.evaluation.proxy import EvalResult
from memtrain.evaluation.proxy import evaluate as evaluate_proxy
from memtrain.memory.prompts import Prompts
from memtrain.recipe import Recipe, load_recipe, parse_recipe
from memtrain.report.console import Screen, print_grid
from memtrain.report.plots import plot_all
from memtrain.report.summary import cell, headline, summarise, table, write_summary
from memtrain.report.trackers import Tracker
from memtrain.rl.checkpoint import PartialFolder, RunFolder, write_atomically
from memtrain.rl.trainer import Trainer
from memtrain.types import TrainingDocument

DEMO = "demo-cpu"


def demo(out: Path) -> None:
    """The main job on the embedded default; goes on by itself where an earlier demo was stopped."""
    recipe = load_recipe(DEMO)
    run = RunFolder(out)
    if (out / "summary.json").exists():
        raise UserError(f"{out} holds a finished demo; look at it with memtrain show {out}, or choose another --out")
    train(recipe, out, resume=run.started, dry_run=False)


def build(recipe: Recipe, out: Path | None) -> None:
    """Build documents and print what they are like."""
    folder = out or Path("runs") / recipe.name / "documents"
    with Screen(f"memtrain build {recipe.name}") as screen:
        _build(recipe, folder, screen)


def train(recipe: Recipe, out: Path | None, resume: bool, dry_run: bool) -> None:
    """The whole main job of a recipe, or one step of each stage for a look at its cost."""
    if dry_run:
        from memtrain.dry_run import dry_run as look

        look(recipe)
        return
    run = RunFolder(out or Path("runs") / recipe.name)
    with run.locked():
        run.check(recipe, resume)
        with Screen(f"memtrain {recipe.name} → {run.path}") as screen:
            engine = load_engine(recipe, screen, training=True)
            _build(recipe, run.path / "documents", screen)
            run.claim(recipe)
            asyncio.run(_Run(recipe, run, engine, screen).stages())
        print_summary(run.path)


def evaluate(target: str, model: str | None, overrides: list[str]) -> None:
    """Measure a model on the held-out documents of a run or recipe; compared with the run's start where it is known."""
    run, recipe = _target(target, overrides)
    if model is None and (run.path / "model").is_dir():
        model = str(run.path / "model")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": model or recipe.model.name})})
    with Screen(f"memtrain eval {recipe.model.name}") as screen:
        engine = load_engine(recipe, screen)
        _build(recipe, run.path / "documents", screen)
        held_out = corpus_documents.open_documents(run.path / "documents", "held_out")
        result = asyncio.run(_measure(engine, held_out, recipe, Path(recipe.model.name).name, screen))
    file = run.path / "eval" / f"model-{Path(recipe.model.name).name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    result.save(file)
    data: dict[str, Any] = {"after": result.summary()}
    before = run.path / "eval" / "before.json"
    if before.exists() and not overrides:
        start = EvalResult.load(before)
        data = {"before": start.summary(), **data, "difference": result.difference(start)}
    print_table(data)
    Console().print(Text(f"records: {file}"))


def read(files: list[Path], ask: str, model: str, recipe: Recipe) -> None:
    """Read text files with bounded memory, showing the memory as it changes, then answer."""
    from memtrain.memory.reader import answer, split_chunks
    from memtrain.memory.reader import read as read_chunks
    from memtrain.tasks.verifier import last_boxed
    from memtrain.types import SamplingParams

    text = "\n\n".join(_text_of(file) for file in files)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": model})})
    console = Console()
    with Screen(f"memtrain read {files[0].name}") as screen:
        engine = load_engine(recipe, screen)
        prompts = Prompts(engine.tokenizer, recipe.memory)
        settings = recipe.memory.model_copy(update={"max_chunks": 1_000_000})
        chunks = split_chunks(text, engine.tokenizer, settings)
        screen.stage("reading", len(chunks))

        def show(step: int, total: int, memory: str) -> None:
            screen.advance()
            screen.note(f"[{step}/{total}] {memory}")

        async def run() -> str:
            params = SamplingParams(recipe.memory.memory_tokens, recipe.eval.temperature, stop=prompts.stop)
            trajectory = await read_chunks(
                engine, prompts, ask, chunks, params, document_id=files[0].name, index=0, on_memory=show
            )
            reply = SamplingParams(recipe.memory.answer_tokens, 0.0, stop=prompts.stop)
            return (await answer(engine, prompts, ask, trajectory, reply)).text

        text_of_answer = asyncio.run(run())
    console.print(Text(f"answer: {last_boxed(text_of_answer) or text_of_answer}", style="bold"))


def load_engine(recipe: Recipe, screen: Screen, training: bool = False) -> Any:
    """The engine of a recipe, with its prompts checked against the model's window, and whether it can train."""
    name = recipe.model.name
    folder = model_path(name) or name  # downloads with a progress display of its own
    screen.stage(f"loading {name}", 0)
    from memtrain.engines.torch.engine import TorchEngine
    from memtrain.engines.torch.model import load_model

    loaded = load_model(folder, recipe.model, recipe.seed)
    engine: Any = TorchEngine(
        loaded,
        seed=recipe.seed,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        max_sequences=recipe.sampler.max_sequences or None,
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        compile_sampler=recipe.sampler.compile,
    )
    if recipe.sampler.kind != "torch":
        from memtrain.engines.vllm.engine import with_vllm

        screen.stage(f"starting {recipe.sampler.kind}", 0)
        engine = with_vllm(engine, recipe.sampler, recipe.seed)
        if training:
            engine.check_trainable()
    engine.on_progress = screen.inner
    Prompts(engine.tokenizer, recipe.memory).budget(engine.context_tokens)
    return engine


class _Run:
    """The stages of one training run, each skipped where its result is already there."""

    def __init__(self, recipe: Recipe, run: RunFolder, engine: Any, screen: Screen) -> None:
        self.recipe, self.run, self.engine, self.screen = recipe, run, engine, screen
        self.documents = corpus_documents.open_documents(run.path / "documents", "train")
        self.held_out = corpus_documents.open_documents(run.path / "documents", "held_out")
        self.clock = _Seconds(run.path / "seconds.json")
        self.tracker = Tracker(recipe.log.tracker, recipe.log.project, recipe.name, recipe.model_dump(), run.path)
        self.trainer = Trainer(engine, recipe, self.documents, run, screen, self._track, self.measure)

    async def stages(self) -> None:
        """From the first stage that is not finished to the summary."""
        recipe, run = self.recipe, self.run
        (run.path / "eval").mkdir(exist_ok=True)
        position = run.latest()
        run.cut_metrics(position)
        results = {}
        if position is None:
            results["before"] = await self.measure("before")
        else:
            self.screen.note(f"resuming after step {position.step} of {position.stage}")
            await self.engine.load(run.place(position))
            results["before"] = EvalResult.load(self._eval_file("before"))
        in_grpo = position is not None and position.stage == "grpo"
        if recipe.priming.steps:
            if not in_grpo:
                with self.clock("priming"):
                    await self.trainer.prime(position.step if position else 0)
                results["after_priming"] = await self.measure("after_priming")
            else:
                results["after_priming"] = EvalResult.load(self._eval_file("after_priming"))
        if recipe.train.steps:
            with self.clock("grpo"):
                await self.trainer.train(position.step if in_grpo and position else 0)
            results["after"] = await self.measure("after")
        else:  # priming alone: its end is the run's end
            results["after"] = results.get("after_priming", results["before"])
        self.screen.stage("writing the model", 0)
        async with PartialFolder(run.path / "model") as part:
            await self.engine.export(part)
        extra = {"tokens_sampled": getattr(self.engine, "tokens_sampled", None)}
        write_summary(run.path, summarise(results, recipe, self.clock.seconds, extra))
        plot_all(run.path)
        self.tracker.close()

    async def measure(self, label: str) -> EvalResult:
        """Evaluate under a label, once: a result that is there is read back."""
        file = self._eval_file(label)
        if file.exists():
            return EvalResult.load(file)
        with self.clock(f"evaluation {label}"):
            await self.engine.reseed(f"{self.recipe.seed}/evaluation")
            result = await _measure(self.engine, self.held_out, self.recipe, label, self.screen)
        result.save(file)
        self.screen.note(f"{label}: " + _one_line(result))
        return result

    def _eval_file(self, label: str) -> Path:
        return self.run.path / "eval" / f"{label}.json"

    def _track(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        offset = self.recipe.priming.steps if stage == "grpo" else 0
        self.tracker.log(offset + step, {f"{stage}/{name}": value for name, value in metrics.items()})


class _Seconds:
    """Wall time of stages, summed over resumed parts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began
            write_atomically(self.file, json.dumps(self.seconds))


async def _measure(
    engine: Any, held_out: Sequence[TrainingDocument], recipe: Recipe, label: str, screen: Screen
) -> EvalResult:
    count = min(len(held_out), recipe.eval.documents) * recipe.eval.samples
    screen.stage(f"evaluation {label}", count)
    shown = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal shown
        screen.advance(done - shown)
        shown = done

    return await evaluate_proxy(engine, held_out[: recipe.eval.documents], recipe, label, progress)


def _build(recipe: Recipe, folder: Path, screen: Screen) -> Any:
    screen.stage("documents", 0)
    report = corpus_documents.build(recipe, folder, progress=screen.inner)
    for line in report.lines():
        screen.note(line)
    return report


def _target(target: str, overrides: list[str]) -> tuple[RunFolder, Recipe]:
    """A run's folder and recipe, or a recipe and the folder its runs take by default."""
    file = Path(target) / "recipe.json"
    if file.exists():
        from memtrain.recipe import apply_overrides

        data = apply_overrides(json.loads(file.read_text(encoding="utf-8")), overrides)
        return RunFolder(Path(target)), parse_recipe(data, str(file))
    if Path(target).is_dir():
        raise UserError(f"{target} is a folder without recipe.json, so no run; give a run's folder or a recipe")
    recipe = load_recipe(target, overrides)
    return RunFolder(Path("runs") / recipe.name), recipe


def _text_of(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); check the path") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); convert it to a .txt file first") from None
    if "\0" in text or not text.strip():
        raise UserError(f"{file} is {'not a text file' if text.strip() else 'empty'}; give a file with text in it")
    return text


def _one_line(result: EvalResult) -> str:
    summary = result.summary()
    names = ("recall_likelihood_gain", "recall_logprob", "recall_f1", "entities_kept")
    parts = [f"{name.replace('_', ' ')} {cell(summary[name])}" for name in names if name in summary]
    return ", ".join(parts) + f" (n = {result.notes['documents']} documents)"


def print_table(data: dict[str, Any]) -> None:
    """Metrics by stage, with intervals, for a person: a table where there is room for one, else a line a metric."""
    rows = table(data)
    print_grid(rows, [f"{title} ({unit}, n = {n})" for title, unit, n, *_ in rows[1:]], lead=3, width=15)


def print_summary(folder: Path) -> None:
    """What a finished run gave: the table, the verdict, where things are."""
    data = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    print_table(data)
    console = Console()
    console.print(Text(headline(data)))
    console.print(Text(f"model: {folder / 'model'}   numbers: {folder / 'summary.json'}   plots: {folder}/*.png"))
