"""What the commands do: one function a command, each a short road through the rooms.

Documents and a model come here; what a run does with them is in ``stages.py``.
"""

from __future__ import annotations

import asyncio
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from memtrain.assets import model_path
from memtrain.corpus import documents as corpus_documents
from memtrain.engines.workers import ALONE, Workers, done_together
from memtrain.errors import UserError
from memtrain.evaluation.proxy import EvalResult
from memtrain.memory.prompts import Prompts
from memtrain.recipe import Recipe, load_recipe, parse_recipe
from memtrain.report.console import Screen, print_grid
from memtrain.report.summary import headline, table
from memtrain.rl.checkpoint import RunFolder
from memtrain.stages import Run, measure

DEMO = "demo-cpu"


def demo(out: Path) -> None:
    """The main job on the embedded default; goes on by itself where an earlier demo was stopped."""
    recipe = load_recipe(DEMO)
    run = RunFolder(out)
    if (out / "summary.json").exists():
        raise UserError(f"{out} holds a finished demo; look at it with memtrain show {out}, or choose another --out")
    train(recipe, run, resume=run.started)


def build(recipe: Recipe, out: Path | None, **scale: Any) -> None:
    """Build documents and print what they are like; ``scale`` as :func:`memtrain.corpus.documents.build` takes it."""
    folder = out or Path("runs") / recipe.name / "documents"
    with Screen(f"memtrain build {recipe.name}") as screen:
        _build(recipe, folder, screen, **scale)


def dry_run(recipe: Recipe) -> None:
    """One step of each stage, for a look at its cost."""
    from memtrain.dry_run import dry_run as look

    look(recipe)


def train(recipe: Recipe, run: RunFolder, resume: bool) -> None:
    """The whole main job of a recipe, in this process."""
    with Screen(f"memtrain {recipe.name} → {run.path}") as screen:
        train_in(run, recipe, resume, screen)
    print_summary(run.path)


def train_in(run: RunFolder, recipe: Recipe, resume: bool, screen: Screen, workers: Workers = ALONE) -> None:
    """All stages of a recipe in a run's folder, as one of its workers.

    Raises :class:`UserError` on every worker where one of them raises it.
    """
    writes = workers.rank == 0
    with run.locked() if writes else nullcontext():

        def begin() -> Any:
            if writes:
                run.check(recipe, resume)
            return load_engine(recipe, screen, training=True, workers=workers)

        def documents() -> None:
            if writes:
                _build(recipe, run.path / "documents", screen)
                run.claim(recipe)
                run.kept()

        engine = done_together(workers, begin)
        done_together(workers, documents)
        done_together(workers, run.fetch if not writes else lambda: None)
        asyncio.run(Run(recipe, run, engine, screen, workers).stages())


def evaluate(target: str, model: str | None, overrides: list[str]) -> None:
    """Measure a model on the held-out documents of a run or recipe; compared with the run's start where it is known."""
    run, recipe = _target(target, overrides)
    if model is None and (run.path / "model").is_dir():
        model = str(run.path / "model")
    recipe = recipe.with_model(name=model or recipe.model.name)
    with Screen(f"memtrain eval {recipe.model.name}") as screen:
        engine = load_engine(recipe, screen)
        _build(recipe, run.path / "documents", screen)
        held_out = corpus_documents.open_documents(run.path / "documents", "held_out")
        chosen = held_out[: recipe.eval.documents]
        result = asyncio.run(measure(engine, chosen, recipe, Path(recipe.model.name).name, screen))
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
    recipe = recipe.with_model(name=model)
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


@functools.cache
def _serving_thread() -> ThreadPoolExecutor:
    """Engines that serve side by side take turns: two at once would slow each other more than twofold on a CPU."""
    return ThreadPoolExecutor(1, "memtrain-serving")


def load_engine(
    recipe: Recipe, screen: Screen, training: bool = False, workers: Workers | None = None, serving: bool = False
) -> Any:
    """The engine of a recipe, with its prompts checked against the model's window, and whether it can train.

    ``serving`` samples in a thread of its own, so that an event loop stays free, and lets requests join as they come.
    As one of several ``workers`` it shares its updates, and draws that do not depend on which worker reads what.
    """
    name = recipe.model.name
    folder = model_path(name) or name  # downloads with a progress display of its own
    if recipe.engine == "tinker":
        screen.stage("connecting to the Tinker server", 0)
        from memtrain.engines.tinker.connect import connect

        engine: Any = connect(folder, recipe.model, recipe.tinker, recipe.seed, recipe.train if training else None)
        engine.on_progress = screen.inner
        Prompts(engine.tokenizer, recipe.memory).budget(engine.context_tokens)
        return engine
    screen.stage(f"loading {name}", 0)
    from memtrain.engines.torch.engine import TorchEngine
    from memtrain.engines.torch.model import load_model

    loaded = load_model(folder, recipe.model, recipe.seed)
    engine = TorchEngine(
        loaded,
        seed=recipe.seed,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        max_sequences=recipe.sampler.max_sequences or None,
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        compile_sampler=recipe.sampler.compile,
        workers=workers or ALONE,
        seed_by_prompt=workers is not None and workers is not ALONE,
        overlap=_serving_thread() if serving else None,
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


def _build(recipe: Recipe, folder: Path, screen: Screen, **scale: Any) -> Any:
    screen.stage("documents", 0)
    report = corpus_documents.build(recipe, folder, progress=screen.inner, **scale)
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
