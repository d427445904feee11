"""``--push-to-hub`` through the real huggingface_hub against a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub, serving

CODE = """
import sys
from pathlib import Path
from memtrain.errors import UserError
from memtrain.publish import hub
try:
    hub.check(sys.argv[2])
    print(hub.push(Path(sys.argv[1]), sys.argv[2], private=sys.argv[3] == "private"))
except UserError as error:
    sys.exit(f"one sentence: {error}")
"""


def push(
    folder: Path, hub: Hub, repository: str = "me/x", how: str = "public", *, token: str = "hf_test", xet: bool = False
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder.parent / "hf"), "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_TOKEN": token} if token else {}
    environment |= {} if xet else {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CODE, str(folder), repository, how]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    (made / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# x\n")
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("xet", [False, True])
def test_every_file_arrives(folder: Path, xet: bool) -> None:
    """Weights by the LFS protocol; and in the newer pipelined upload, as far as it goes without a xet store."""
    with serving(lfs=not xet) as hub:
        done = push(folder, hub, how="private", xet=xet)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{hub.url}/me/x"
        assert hub.files == contents(folder)
        assert hub.private == {"me/x": True}
        assert hub.commits == ["Exported by memtrain"]
        assert ("PUT object" in hub.asked) != xet
        (folder / "config.json").write_text('{"a": 1}')
        assert push(folder, hub, how="private", xet=xet).returncode == 0  # once more: the repository is there
        assert hub.files == contents(folder)


def test_private_is_never_uploaded_to_a_public_repository(folder: Path) -> None:
    with serving() as hub:
        hub.private["me/x"] = False
        done = push(folder, hub, how="private")
        assert "one sentence: me/x is there already and public" in done.stderr
        assert not hub.files


def test_failures_are_one_sentence(folder: Path) -> None:
    with serving() as hub:
        wrong = push(folder, hub, token="hf_other")
        assert "one sentence: the push to me/x failed (" in wrong.stderr
        assert f"hf upload me/x {folder}" in wrong.stderr
        hub.broken = True
        assert "one sentence: the push to me/x failed (" in push(folder, hub).stderr
        none = push(folder, hub, token="")
        assert "one sentence: --push-to-hub needs a token of the hub: run hf auth login, or set HF_TOKEN" in none.stderr
        assert "write it as OWNER/NAME" in push(folder, hub, "a/b/c").stderr
        assert "hf_test" not in "".join((wrong.stderr, none.stderr))
        assert not hub.files
    gone = push(folder, hub)
    assert "one sentence: the push to me/x failed (" in gone.stderr
    assert "Traceback" not in gone.stderr
