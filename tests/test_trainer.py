"""The whole road with a tiny model: text in, model and numbers out; stopped anywhere, it ends with the same numbers."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
from synthetic_corpus import write_corpus

from memtrain import pipeline
from memtrain.engines.torch.engine import TorchEngine
from memtrain.errors import UserError
from memtrain.recipe import Recipe, parse_recipe
from memtrain.rl import experience
from memtrain.rl.checkpoint import PartialFolder, Position, RunFolder, write_atomically
from memtrain.types import Row

TIMINGS = {"seconds", "update_seconds", "tokens_per_second"}
FILES = {"recipe.json", "metrics.jsonl", "summary.json", "documents", "eval", "model", "checkpoints", "samples"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "pages.jsonl")


def small(corpus: Path, **sections: dict[str, Any]) -> Recipe:
    """A run of seconds: two priming and three GRPO steps, likelihood rewards, KL on."""
    data: dict[str, dict[str, Any]] = {
        "model": {"name": str(tiny.model_folder("llama")), "dtype": "float32", "device": "cpu"},
        "corpus": {"source": str(corpus), "min_chars": 10, "held_out": 0.3},
        "entities": {"finder": "rules"},
        "documents": {"train": 5, "held_out": 2, "related": 1, "random": 1},
        "memory": {
            "chunk_tokens": 96,
            "max_chunks": 2,
            "chunking": "passages",
            "memory_tokens": 8,
            "answer_tokens": 8,
            "style": "compact",
        },
        "tasks": {"probes": 2, "reconstruction_reward": "likelihood", "recall_reward": "likelihood"},
        "priming": {"steps": 2, "documents_per_step": 2, "lr": 1e-3},
        "train": {
            "steps": 3,
            "documents_per_step": 2,
            "group_size": 3,
            "lr": 1e-3,
            "warmup_steps": 2,
            "kl_coef": 0.05,
            "micro_batch_tokens": 512,
        },
        "eval": {"documents": 2, "probes": 2, "every": 2, "bootstrap": 100},
        "log": {"samples": 1, "checkpoint_every": 2},
    }
    for name, values in sections.items():
        data[name] = {**data[name], **values}
    return parse_recipe({"name": "small", "seed": 4, **data}, "test")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on interruptions."""
    return {
        "weights": hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": metrics(run),
        "evaluations": {file.name: json.loads(file.read_text()) for file in (run / "eval").iterdir()},
        "samples": {file.name: pq.read_table(file).to_pylist() for file in sorted((run / "samples").iterdir())},
        "checkpoints": sorted(folder.name for folder in (run / "checkpoints").iterdir()),
    }


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes four fifths of a tiny run; the run of :func:`unbroken`, made before this, has its plots."""
    monkeypatch.setattr(pipeline, "plot_all", lambda folder: None)


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    pipeline.train(small(corpus), run, resume=False, dry_run=False)
    return run


def test_a_run_leaves_everything_behind(unbroken: Path) -> None:
    assert {entry.name for entry in unbroken.iterdir()} >= FILES
    rows = metrics(unbroken)
    assert [(row["stage"], row["step"]) for row in rows] == [
        *[("priming", 1), ("priming", 2)],
        *[("grpo", 1), ("grpo", 2), ("grpo", 3)],
    ]
    for row in rows:
        assert row["grad_norm"] > 0
        assert row["tokens_packed"] < row["tokens_separate"]
    assert [row["lr"] for row in rows if row["stage"] == "grpo"] == pytest.approx([5e-4, 1e-3, 1e-3])  # warm-up
    first, *later = (row for row in rows if row["stage"] == "grpo")
    assert first["kl"] == pytest.approx(0, abs=1e-6)  # the start model is the policy after priming
    assert all(row["kl"] > 0 for row in later)
    assert all(row["clip_fraction"] == 0 for row in rows)  # one update a batch: the ratio is 1
    assert all(row["sampler_gap"] < 1e-3 for row in rows if row["stage"] == "grpo")
    assert {file.stem for file in (unbroken / "eval").iterdir()} == {"before", "after_priming", "step-2", "after"}
    summary = json.loads((unbroken / "summary.json").read_text())
    assert {"before", "after_priming", "after", "difference", "difference_by_stage"} <= set(summary)
    assert {"priming", "grpo"} <= set(summary["difference_by_stage"])
    assert [folder.name for folder in sorted((unbroken / "checkpoints").iterdir())] == ["grpo-000002", "grpo-000003"]
    assert len(list(unbroken.glob("*.png"))) >= 2
    assert not list(unbroken.rglob(".partial-*"))
    assert not list(unbroken.rglob("*.part"))
    assert len(list((unbroken / "samples").iterdir())) == 3


def test_the_model_of_a_run_is_its_last_checkpoint(unbroken: Path) -> None:
    prompt = tuple(range(20, 50))
    engine, resumed = tiny.engine(unbroken / "model"), tiny.engine("llama")
    tiny.run(resumed.load(unbroken / "checkpoints" / "grpo-000003"))
    assert tiny.run(engine.score(prompt, (9, 10))) == tiny.run(resumed.score(prompt, (9, 10)))


def test_the_same_recipe_gives_the_same_run(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    pipeline.train(small(corpus), tmp_path / "again", resume=False, dry_run=False)
    assert outcome(tmp_path / "again") == outcome(unbroken)
    other = small(corpus).model_copy(update={"seed": 5})
    pipeline.train(other, tmp_path / "other", resume=False, dry_run=False)
    assert metrics(tmp_path / "other") != metrics(unbroken)


# ---- stopped and resumed --------------------------------------------------------------------------------------------


def stop_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int, error: BaseException) -> None:
    """Raise once, when the metrics of a step are told to trackers."""
    told: Callable[..., None] = pipeline._Run._track
    armed = [True]

    def track(self: Any, at: str, number: int, values: dict[str, float]) -> None:
        told(self, at, number, values)
        if armed and (at, number) == (stage, step):
            armed.clear()
            raise error

    monkeypatch.setattr(pipeline._Run, "_track", track)


@pytest.mark.parametrize(("stage", "step"), [("priming", 1), ("priming", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)])
def test_interrupted_after_any_step(
    stage: str, step: int, corpus: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C: what was finished is saved at once."""
    stop_at(monkeypatch, stage, step, KeyboardInterrupt())
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(small(corpus), run, resume=False, dry_run=False)
    assert RunFolder(run).latest() == Position(stage, step)
    assert not (run / "summary.json").exists()
    pipeline.train(small(corpus), run, resume=True, dry_run=False)
    assert comparable(outcome(run)) == comparable(outcome(unbroken))


@pytest.mark.parametrize(
    ("stage", "step", "left"), [("priming", 1, None), ("grpo", 1, "priming-2"), ("grpo", 3, "grpo-2")]
)
def test_killed_after_a_checkpoint(
    stage: str,
    step: int,
    left: str | None,
    corpus: Path,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash saves nothing: the run goes back to its last checkpoint, and takes the later metrics back too."""
    stop_at(monkeypatch, stage, step, RuntimeError("power cut"))
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power cut"):
        pipeline.train(small(corpus), run, resume=False, dry_run=False)
    found = RunFolder(run).latest()
    assert (f"{found.stage}-{found.step}" if found else None) == left
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write('{"stage": "grpo", "st')  # cut in the middle of a line
    pipeline.train(small(corpus), run, resume=True, dry_run=False)
    assert comparable(outcome(run)) == comparable(outcome(unbroken))


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Which checkpoints are left depends on where the run was stopped; the evaluation between steps on whether it was
    stopped just before it. Nothing else does."""
    evaluations = {name: value for name, value in found["evaluations"].items() if not name.startswith("step-")}
    return {**found, "checkpoints": found["checkpoints"][-1], "evaluations": evaluations}


@pytest.mark.parametrize("what", ["sampling", "scoring", "update"])
def test_interrupted_in_the_middle_of_a_step(
    what: str, corpus: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the engine works on the second GRPO step: the step never happened."""
    begun: list[int] = []
    collect, report = experience.collect, TorchEngine._report

    async def counted(*args: Any) -> Any:
        begun.append(args[-1])
        return await collect(*args)

    def interrupt(self: TorchEngine, at: str, done: int, total: int) -> None:
        report(self, at, done, total)
        if begun and begun[-1] == 2 and at == what and len(begun) == 2:
            begun.append(2)
            raise KeyboardInterrupt

    monkeypatch.setattr("memtrain.rl.trainer.collect", counted)
    monkeypatch.setattr(TorchEngine, "_report", interrupt)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(small(corpus), run, resume=False, dry_run=False)
    assert RunFolder(run).latest() == Position("grpo", 1)
    pipeline.train(small(corpus), run, resume=True, dry_run=False)
    assert comparable(outcome(run)) == comparable(outcome(unbroken))


def test_interrupted_while_evaluating(
    corpus: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stopped = pipeline._measure, []

    async def measure(engine: Any, held_out: Any, recipe: Recipe, label: str, screen: Any) -> Any:
        result = await real(engine, held_out, recipe, label, screen)
        if label not in stopped:
            stopped.append(label)
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(pipeline, "_measure", measure)
    run = tmp_path / "run"
    for attempt in range(5):
        try:
            pipeline.train(small(corpus), run, resume=attempt > 0, dry_run=False)
            break
        except KeyboardInterrupt:
            continue
    assert stopped == ["before", "after_priming", "step-2", "after"]
    assert comparable(outcome(run)) == comparable(outcome(unbroken))


def test_a_finished_run_trained_further(corpus: Path, tmp_path: Path) -> None:
    longer = small(corpus, train={"steps": 4})
    pipeline.train(longer, tmp_path / "long", resume=False, dry_run=False)
    pipeline.train(small(corpus, train={"steps": 2}), tmp_path / "short", resume=False, dry_run=False)
    pipeline.train(longer, tmp_path / "short", resume=True, dry_run=False)
    assert comparable(outcome(tmp_path / "short")) == comparable(outcome(tmp_path / "long"))
    assert json.loads((tmp_path / "short" / "recipe.json").read_text())["train"]["steps"] == 4


# ---- the run folder -------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder(corpus: Path, unbroken: Path) -> None:
    before = outcome(unbroken)
    with pytest.raises(UserError, match=r"already holds a run; add --resume .* choose another --out"):
        pipeline.train(small(corpus), unbroken, resume=False, dry_run=False)
    with pytest.raises(UserError, match=r"is finished; raise train\.steps"):
        pipeline.train(small(corpus), unbroken, resume=True, dry_run=False)
    assert outcome(unbroken) == before


def test_resumed_with_other_settings(corpus: Path, unbroken: Path) -> None:
    for sections, key in [
        ({"train": {"lr": 2e-3}}, r"train\.lr"),
        ({"tasks": {"probes": 3}}, r"tasks\.probes"),
        ({"memory": {"memory_tokens": 9}}, r"memory\.memory_tokens"),
        ({"documents": {"train": 6}}, r"documents\.train"),
    ]:
        with pytest.raises(UserError, match=rf"other settings \({key} differ\); resume with the same recipe"):
            pipeline.train(small(corpus, **sections), unbroken, resume=True, dry_run=False)
    with pytest.raises(UserError, match=r"other settings \(seed differ"):
        pipeline.train(small(corpus).model_copy(update={"seed": 9}), unbroken, resume=True, dry_run=False)


def test_what_does_not_touch_the_weights_may_change(corpus: Path, unbroken: Path) -> None:
    changed = small(corpus, log={"checkpoint_every": 1}, eval={"probes": 1}, train={"steps": 9})
    RunFolder(unbroken).check(changed, resume=True)


def test_a_folder_with_other_things_in_it(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds files but no run .*choose another --out"):
        pipeline.train(small(corpus), tmp_path, resume=False, dry_run=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_two_processes_in_one_folder(corpus: Path, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is working in"):
            pipeline.train(small(corpus), tmp_path, resume=False, dry_run=False)


def test_a_full_disk_leaves_the_older_checkpoint_whole(
    corpus: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, saves = TorchEngine.save, []

    async def save(self: TorchEngine, folder: Path) -> None:
        saves.append(folder.name)
        if len(saves) == 2:
            (folder / "optimiser.safetensors").write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        await real(self, folder)

    monkeypatch.setattr(TorchEngine, "save", save)
    run = tmp_path / "run"
    with pytest.raises(OSError, match="No space left"):
        pipeline.train(small(corpus), run, resume=False, dry_run=False)
    assert RunFolder(run).latest() == Position("priming", 2)
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["priming-000002"]
    pipeline.train(small(corpus), run, resume=True, dry_run=False)
    assert comparable(outcome(run)) == comparable(outcome(unbroken))


def test_partial_folders_are_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "model"

    async def write(text: str, error: BaseException | None = None) -> None:
        async with PartialFolder(target) as part:
            (part / "weights").write_text(text)
            (part / "templates").mkdir()  # tokenizers with several templates save a folder of them
            (part / "templates" / "tool.jinja").write_text(text)
            if error:
                raise error

    asyncio.run(write("one"))
    assert (target / "templates" / "tool.jinja").read_text() == "one"
    for error in (OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            asyncio.run(write("two", error))
        assert (target / "weights").read_text() == "one"
    asyncio.run(write("three"))
    assert (target / "weights").read_text() == "three"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_texts_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    write_atomically(file, "one")

    def full(self: Path, text: str, **rest: Any) -> int:
        with self.open("w") as handle:
            handle.write(text[:2])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="full"):
        write_atomically(file, "two")
    assert file.read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


# ---- modes and rewards ----------------------------------------------------------------------------------------------


def rows_of_run(monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """Collects the rows of every update of the run to come."""
    seen: list[list[Row]] = []
    real = TorchEngine.update

    async def update(self: TorchEngine, rows: Any, *rest: Any) -> dict[str, float]:
        seen.append(list(rows))
        return await real(self, rows, *rest)

    monkeypatch.setattr(TorchEngine, "update", update)
    return seen


def made_up_reward(kind: str, text: str, golds: Any) -> float:
    """A random model never answers right: rewards that vary, by the text alone."""
    assert kind in ("exact", "f1")
    assert golds
    return (sum(map(ord, text)) % 7) / 6


@pytest.mark.parametrize("mode", ["full", "decoupled", "end-to-end"])
@pytest.mark.parametrize("reward", ["exact", "f1", "likelihood"])
def test_modes_and_rewards(
    mode: str, reward: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reward != "likelihood":
        monkeypatch.setattr(experience, "text_reward", made_up_reward)
    seen = rows_of_run(monkeypatch)
    recipe = small(
        corpus,
        tasks={"mode": mode, "reconstruction_reward": reward, "recall_reward": reward, "recall_samples": 2},
        priming={"steps": 0},
        train={"steps": 2},
        eval={"every": 0},
    )
    pipeline.train(recipe, tmp_path / "run", resume=False, dry_run=False)
    (first, second) = metrics(tmp_path / "run")
    assert second["policy_tokens"] > 0
    assert second["grad_norm"] > 0
    kinds = {row.kind for rows in seen for row in rows}
    losses = {(row.kind, row.loss) for rows in seen for row in rows}
    assert "write" in kinds
    assert ("recall" in kinds) == (mode != "end-to-end")
    assert ("recall_reward" in first) == (mode != "end-to-end")
    if reward == "likelihood":
        assert ("answer", "cross_entropy") in losses
        assert ("recall", "policy") not in losses
    else:
        assert ("answer", "policy") in losses
        assert not any(loss == "cross_entropy" for _, loss in losses)
    coupled = first["reward"] - first["reconstruction_reward"]
    if mode == "full":
        assert coupled == pytest.approx(0.5 * first["recall_reward"])
    else:
        assert coupled == pytest.approx(0)


def test_groups_without_a_difference_are_dropped_and_counted(corpus: Path, tmp_path: Path) -> None:
    """Exact match of a model that knows nothing: all rewards 0, no rows, no step, and the log says so."""
    recipe = small(
        corpus,
        tasks={"reconstruction_reward": "exact", "recall_reward": "exact", "recall_samples": 2},
        priming={"steps": 0},
        train={"steps": 1},
    )
    pipeline.train(recipe, tmp_path / "run", resume=False, dry_run=False)
    (row,) = metrics(tmp_path / "run")
    assert row["groups"] == 0
    assert row["groups/e2e/dropped"] == 2
    assert row["groups/recall/dropped"] == 2 * 3 * 2
    assert row["dropped_groups"] == 14
    assert row["reward"] == row["grad_norm"] == row["rows"] == 0
    start = tiny.engine("llama")
    end = tiny.engine(tmp_path / "run" / "model")
    assert tiny.run(start.score((9, 10, 11), (12,))) == tiny.run(end.score((9, 10, 11), (12,)))


def test_a_lora_run_resumes_and_its_model_loads(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(corpus, model={"lora_rank": 2}, train={"gradient_checkpointing": True, "steps": 2})
    pipeline.train(recipe, tmp_path / "whole", resume=False, dry_run=False)
    stop_at(monkeypatch, "grpo", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(recipe, tmp_path / "run", resume=False, dry_run=False)
    pipeline.train(recipe, tmp_path / "run", resume=True, dry_run=False)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    adapters = [(tmp_path / name / "model" / "adapter_model.safetensors").read_bytes() for name in ("run", "whole")]
    assert adapters[0] == adapters[1]
    assert tiny.engine(tmp_path / "run" / "model").context_tokens == tiny.CONTEXT
