"""The command line as a user meets it: help, exit statuses, one sentence for a mistake."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

import memtrain
from memtrain import cli
from memtrain.assets import CORPORA, MODELS
from memtrain.errors import UserError
from memtrain.recipe import builtin_recipes

ENVIRONMENT = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("MEMTRAIN_DEBUG", None)


def memtrain_command(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memtrain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, **settings)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """In place of memtrain.pipeline: records what the command line asks for."""
    module: Any = types.ModuleType("memtrain.pipeline")
    module.calls = []
    for name in ("demo", "build", "train", "dry_run", "evaluate", "read"):
        setattr(module, name, lambda *arguments, name=name, **more: module.calls.append((name, *arguments)))
    monkeypatch.setitem(sys.modules, "memtrain.pipeline", module)
    monkeypatch.setattr(memtrain, "pipeline", module, raising=False)
    return module


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "own.toml"
    path.write_text('name = "own"\n[train]\nsteps = 4\n', encoding="utf-8")
    return str(path)


def test_help_names_every_command() -> None:
    done = memtrain_command("--help")
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert f"• {name}" in done.stdout
    assert memtrain_command().stdout == done.stdout  # no command at all: the same


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from memtrain.cli import main; main(['train', '--help'])"
    probe = f"{code.split(';')[0]}\ntry:\n  exec({code!r})\nexcept SystemExit: pass\nprint(*sys.modules)"
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=ENVIRONMENT)
        best = min(best, time.perf_counter() - start)
    heavy = {"torch", "transformers", "matplotlib", "pyarrow", "bm25s", "numpy"}
    assert not heavy & set(done.stdout.split())
    assert best < 1.0


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_each_command_is_enough(command: str) -> None:
    done = memtrain_command(command, "--help")
    assert done.returncode == 0
    assert f"Example: memtrain {command}" in done.stdout
    if command in ("build", "train", "eval", "read"):
        for name in (*builtin_recipes(), *MODELS):
            assert name in done.stdout
    if command in ("build", "train"):
        assert all(name in done.stdout for name in CORPORA)


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["train", "no-such"], ["no recipe named 'no-such'", ".toml"]),
        (["train", "{recipe}", "--set", "train.stepz=3"], ["train.stepz", "did you mean 'steps'?"]),
        (["train", "{recipe}", "--set", "memory.chunk_tokens=-5"], ["memory.chunk_tokens", "-5"]),
        (["build", "{recipe}", "--set", "novalue"], ["novalue", "section.key=value"]),
        (["show", "no-such-folder"], ["no-such-folder is not a folder"]),
        (["read", "--ask", "who?"], ["name a file"]),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(recipe: str, arguments: list[str], pieces: list[str]) -> None:
    done = memtrain_command(*(part.format(recipe=recipe) for part in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("memtrain: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(piece in done.stderr for piece in pieces)


def test_a_misspelt_command_or_option_is_status_2() -> None:
    assert memtrain_command("trian").returncode == 2
    assert memtrain_command("demo", "--oot", "x").returncode == 2


def test_debug_shows_the_traceback(recipe: str) -> None:
    environment = {**ENVIRONMENT, "MEMTRAIN_DEBUG": "1"}
    command = [sys.executable, "-m", "memtrain", "train", recipe, "--set", "x=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "UserError" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_a_closed_pipe_is_quiet(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "memtrain", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    os.close(writer)
    assert done.stderr == ""


def test_commands_reach_the_pipeline(pipeline: Any, recipe: str, tmp_path: Path) -> None:
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert cli.main(["train", recipe, "--set", "seed=3", "train.steps=9", "--set", "eval.probes=2", "--resume"]) == 0
    assert cli.main(["train", recipe, "--dry-run", "--out", "here"]) == 0
    assert cli.main(["build", recipe]) == 0
    assert cli.main(["eval", "runs/demo", "--model", "m", "--set", "eval.samples=2"]) == 0
    assert cli.main(["read", "a.txt", "b.md", "--ask", "who?", "--recipe", recipe]) == 0
    first, second, third, dry, build, evaluate, read = pipeline.calls
    assert first == ("demo", Path("runs/demo"))
    assert second == ("demo", tmp_path)
    assert (third[0], third[2].path, third[3]) == ("train", Path("runs") / third[1].name, True)
    assert (third[1].seed, third[1].train.steps, third[1].eval.probes) == (3, 9, 2)
    assert (dry[0], dry[1].train.steps) == ("dry_run", 4)
    assert (build[0], build[1].train.steps, build[2]) == ("build", 4, None)
    assert evaluate == ("evaluate", "runs/demo", "m", ["eval.samples=2"])
    assert read[:4] == ("read", [Path("a.txt"), Path("b.md")], "who?", read[4].model.name)


def raising(pipeline: Any, error: BaseException) -> None:
    def fail(*_: object, **more: object) -> None:
        raise error

    pipeline.train = pipeline.demo = pipeline.build = fail


@pytest.mark.parametrize(
    ("error", "status", "piece"),
    [
        (UserError("line one\n  line two"), 2, "memtrain: line one line two"),
        (KeyboardInterrupt(), 130, "--resume"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/model"),
            3,
            "the disk of runs/x/model is full",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x"), 3, "the disk of runs/x is full"),
        (RuntimeError("Error while serializing: No space left on device (os error 28)"), 3, "is full"),
    ],
)
def test_failures_of_a_run(
    pipeline: Any, recipe: str, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, piece: str
) -> None:
    raising(pipeline, error)
    assert cli.main(["train", recipe, "--out", "runs/x"]) == status
    said = capsys.readouterr().err
    assert piece in said
    assert len(said.strip().splitlines()) == 1


def test_a_full_disk_without_a_file_name_is_found(
    pipeline: Any, recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()

    def usage(path: Path) -> types.SimpleNamespace:
        return types.SimpleNamespace(free=0 if path == full else 10**9)

    monkeypatch.setattr("memtrain.cli.shutil.disk_usage", usage)
    raising(pipeline, OSError(errno.ENOSPC, "No space left on device"))
    assert cli.main(["train", recipe, "--out", str(full / "not" / "yet")]) == 3
    assert f"the disk of {full}/not/yet is full" in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(
    pipeline: Any, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(pipeline, KeyboardInterrupt())
    cli.main(["train", recipe, "--set", "name=two words", "--resume"])
    assert f"memtrain train {recipe} --set 'name=two words' --resume" in capsys.readouterr().err
    cli.main(["build", recipe])
    assert "same command" in capsys.readouterr().err


def test_an_error_of_ours_is_not_hidden(pipeline: Any, recipe: str) -> None:
    raising(pipeline, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["train", recipe])
    raising(pipeline, OSError(errno.EIO, "broken disk"))
    with pytest.raises(OSError, match="broken disk"):
        cli.main(["train", recipe])
