"""GGUF through llama.cpp's converter: found or not, refused or not, and the real one where LLAMA_CPP names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from export_runs import card, engine_run, exported, write_recipe
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from memtrain.errors import UserError
from memtrain.publish import gguf
from memtrain.recipe import parse_recipe

pytestmark = pytest.mark.filterwarnings("ignore")


def converter(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(text)
    return folder


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs llama.cpp's converter .* add --llama-cpp FOLDER or set LLAMA_CPP"):
        gguf.find_converter(None)
    one, two = converter(tmp_path / "one", ""), converter(tmp_path / "two", "")
    assert gguf.find_converter(one) == one / "convert_hf_to_gguf.py"
    assert gguf.find_converter(one / "convert_hf_to_gguf.py") == one / "convert_hf_to_gguf.py"
    monkeypatch.setenv("LLAMA_CPP", str(two))
    assert gguf.find_converter(None).parent == two
    assert gguf.find_converter(one).parent == one
    with pytest.raises(UserError, match=r"--llama-cpp is .* there is no convert_hf_to_gguf.py"):
        gguf.find_converter(tmp_path)
    monkeypatch.delenv("LLAMA_CPP")
    (one / "convert_hf_to_gguf.py").chmod(0o755)
    monkeypatch.setenv("PATH", str(one))
    assert gguf.find_converter(None).parent == one


def test_types() -> None:
    assert gguf.check_type("Q8_0") == "q8_0"
    with pytest.raises(UserError, match=r"--gguf Q4_K_M: .* llama-quantize"):
        gguf.check_type("Q4_K_M")


def test_a_converter_that_fails_leaves_nothing(tmp_path: Path) -> None:
    engine_run(tmp_path / "run")
    refuses = converter(tmp_path / "refuses", "raise NotImplementedError('BPE pre-tokenizer was not recognized')")
    with pytest.raises(UserError, match=r"converter failed on this model \(.*not recognized\)"):
        exported(tmp_path / "run", tmp_path / "out", gguf="bf16", llama_cpp=refuses)
    lacks = converter(tmp_path / "lacks", "import no_such_package_at_all")
    with pytest.raises(UserError, match="needs the Python package no_such_package_at_all"):
        exported(tmp_path / "run", tmp_path / "out", gguf="bf16", llama_cpp=lacks)
    silent = converter(tmp_path / "silent", "")
    with pytest.raises(UserError, match="converter failed"):
        exported(tmp_path / "run", tmp_path / "out", gguf="bf16", llama_cpp=silent)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLAMA_CPP"), reason="LLAMA_CPP names no checkout of llama.cpp")
def test_the_real_converter(tmp_path: Path, default_model: Path) -> None:
    """The default model: transformers reads the same weights and the same tokenizer back."""
    write_recipe(tmp_path, parse_recipe({"name": "default", "model": "smollm2-135m"}, "test"))
    (tmp_path / "model").symlink_to(default_model)
    out = exported(tmp_path, tmp_path / "out", gguf="bf16")
    file = "out-BF16.gguf"
    assert file in card(out)
    assert str(tmp_path).encode() not in (out / file).read_bytes()
    plain = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).state_dict()
    back = AutoModelForCausalLM.from_pretrained(out, gguf_file=file, dtype=torch.bfloat16).state_dict()
    assert plain.keys() == back.keys()
    assert all(torch.equal(plain[name], back[name]) for name in plain)
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(out, gguf_file=file)
    kept = GGUFReader(out / file).get_field("tokenizer.chat_template")
    assert kept is not None
    assert kept.contents() == ours.chat_template
    assert ours.encode("Ada met Babbage.") == theirs.encode("Ada met Babbage.")
