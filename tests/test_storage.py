"""A run's folder behind an fsspec URL: real file systems (local, in memory), whole states or none."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from memtrain.errors import UserError
from memtrain.launch.storage import INDEX, FsspecStore, is_url, run_folder


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "home"))


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}/store"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("out", "expected"),
    [("s3://b/r", True), ("file:///x", True), ("runs/a", False), ("/abs", False), ("C:/x", False), ("a:b", False)],
)
def test_what_is_a_url(out: str, expected: bool) -> None:
    assert is_url(out) is expected


def test_another_machine_gets_what_one_has_sent(url: str, tmp_path: Path) -> None:
    first, second = (FsspecStore(url, tmp_path / name) for name in ("one", "two"))
    state = {"recipe.json": "{}", "checkpoints/grpo-000002/engine.json": "2", "eval/before.json": "[]"}
    write(first.folder, state | {".lock": "", ".ray/x": "", "checkpoints/.partial-grpo-000004/engine.json": "half"})
    first.push()
    second.fetch()
    assert files(second.folder) == state
    (first.folder / "checkpoints/grpo-000002/engine.json").unlink()
    later = {"recipe.json": "{ }", "checkpoints/grpo-000004/engine.json": "4"}
    write(first.folder, later)
    first.push()
    second.fetch()
    assert files(second.folder) == later | {"eval/before.json": "[]"}
    assert not (second.folder / "checkpoints" / "grpo-000002").exists()
    if url.startswith("file"):
        assert not first.files.exists(f"{first.root}/checkpoints/grpo-000002")


def test_sending_that_broke_off_shows_the_state_before(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (FsspecStore(url, tmp_path / name) for name in ("one", "two"))
    write(first.folder, {"recipe.json": "{}", "checkpoints/grpo-000002/engine.json": "2"})
    first.push()
    write(first.folder, {"checkpoints/grpo-000004/a": "a", "checkpoints/grpo-000004/b": "b"})
    put, sent = type(first.files).put_file, list[str]()

    def broken(self: object, source: str, *others: object, **options: object) -> None:
        if sent:
            raise ConnectionError("gone")
        sent.append(source)
        put(self, source, *others, **options)

    monkeypatch.setattr(type(first.files), "put_file", broken)
    with pytest.raises(UserError, match=r"ConnectionError: gone.*--resume"):
        first.push()
    monkeypatch.undo()
    second.fetch()
    assert set(files(second.folder)) == {"recipe.json", "checkpoints/grpo-000002/engine.json"}


def test_an_index_cannot_write_outside_the_folder(url: str, tmp_path: Path) -> None:
    store = FsspecStore(url, tmp_path / "one")
    store.files.makedirs(store.root, exist_ok=True)
    store.files.pipe_file(f"{store.root}/{INDEX}", json.dumps({"../outside.txt": "0"}).encode())
    store.files.pipe_file(f"{store.root.rpartition('/')[0]}/outside.txt", b"x")
    with pytest.raises(UserError, match=r"outside\.txt"):
        store.fetch()
    assert not (tmp_path / "outside.txt").exists() or url.startswith("file")


def test_an_unknown_kind_of_url_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"nosuch://bucket/run cannot be used"):
        run_folder("nosuch://bucket/run")


def test_a_run_folder_of_a_url_begins_with_what_is_there(url: str, tmp_path: Path) -> None:
    store = FsspecStore(url, tmp_path / "one")
    write(store.folder, {"recipe.json": "{}"})
    store.push()
    run = run_folder(url)
    assert run.started
    write(run.path, {"metrics.jsonl": "{}\n"})
    run.kept()
    assert fsspec.open(f"{url}/metrics.jsonl").open().read() == b"{}\n"
