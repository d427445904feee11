"""The run folder refuses what would mix two runs, and a full disk loses nothing that was finished."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import comparable, outcome, small, train, unbroken

from memtrain import stages
from memtrain.engines.torch.engine import TorchEngine
from memtrain.errors import UserError
from memtrain.rl.checkpoint import PartialFolder, Position, RunFolder, write_atomically

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes four fifths of a tiny run; the undisturbed one is made before anything is changed."""
    unbroken()
    monkeypatch.setattr(stages, "plot_all", lambda folder: None)


def test_a_second_run_in_the_same_folder() -> None:
    before = outcome(unbroken())
    with pytest.raises(UserError, match=r"already holds a run; add --resume .* choose another --out"):
        train(small(), unbroken())
    with pytest.raises(UserError, match=r"is finished; raise train\.steps"):
        train(small(), unbroken(), resume=True)
    assert outcome(unbroken()) == before


def test_resumed_by_a_later_version_that_has_more_settings(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken(), run)
    recipe = json.loads((run / "recipe.json").read_text())
    del recipe["sampler"], recipe["train"]["importance_sampling_cap"]
    (run / "recipe.json").write_text(json.dumps(recipe))
    RunFolder(run).check(small(train={"steps": 9}), resume=True)
    with pytest.raises(UserError, match=r"importance_sampling_cap differ"):
        RunFolder(run).check(small(train={"steps": 9, "importance_sampling_cap": 3.0}), resume=True)


def test_resumed_with_other_settings() -> None:
    for sections, key in [
        ({"train": {"lr": 2e-3}}, r"train\.lr"),
        ({"tasks": {"probes": 3}}, r"tasks\.probes"),
        ({"memory": {"memory_tokens": 9}}, r"memory\.memory_tokens"),
        ({"documents": {"train": 6}}, r"documents\.train"),
    ]:
        with pytest.raises(UserError, match=rf"other settings \({key} differ\); resume with the same recipe"):
            train(small(**sections), unbroken(), resume=True)
    with pytest.raises(UserError, match=r"other settings \(seed differ"):
        train(small().model_copy(update={"seed": 9}), unbroken(), resume=True)


def test_what_does_not_touch_the_weights_may_change() -> None:
    changed = small(log={"checkpoint_every": 1}, eval={"every": 1}, train={"steps": 9})
    RunFolder(unbroken()).check(changed, resume=True)


def test_steps_that_were_done_cannot_be_undone() -> None:
    with pytest.raises(UserError, match=r"has done 3 steps already; set train\.steps to 3 or more"):
        RunFolder(unbroken()).check(small(train={"steps": 2}), resume=True)


def test_a_folder_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds files but no run .*choose another --out"):
        train(small(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is working in"):
            train(small(), tmp_path)


def test_a_full_disk_leaves_the_older_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        train(small(), run)
    assert RunFolder(run).latest() == Position("priming", 2)
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["priming-000002"]
    train(small(), run, resume=True)
    assert comparable(outcome(run)) == comparable(outcome(unbroken()))


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
