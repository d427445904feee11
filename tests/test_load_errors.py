"""A model that cannot be used says so in one sentence that names it and the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from memtrain.engines.torch.model import choose_device, choose_dtype, load_model
from memtrain.errors import UserError
from memtrain.recipe import ModelSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model folder to break."""
    return Path(shutil.copytree(tiny.model_folder("llama"), tmp_path / "my-model"))


def refused(name: str | Path, match: str, **settings: Any) -> str:
    """The sentence a user sees."""
    with pytest.raises(UserError, match=match) as caught:
        load_model(name, ModelSettings(**{"device": "cpu", "dtype": "float32", **settings}))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_a_whole_folder_loads(folder: Path) -> None:
    loaded = load_model(folder, ModelSettings(device="cpu", dtype="float32"))
    assert loaded.context_tokens == tiny.CONTEXT
    assert not loaded.lora
    assert not loaded.model.training
    assert loaded.tokenizer.pad_token is not None


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, r"my-model has no config\.json; key 'model\.name'")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, r"my-model has no \.safetensors weights")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    refused(folder, r"pickled \.bin files are not read")


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{ not json")
    refused(folder, "my-model cannot be loaded .*key 'model.name'")


def test_unknown_kind_of_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "transfoormer"}))
    refused(folder, "my-model cannot be loaded")


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_weights_cut_short(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refused(folder, "my-model cannot be loaded")


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_all_there(folder: Path) -> None:
    """transformers fills holes with random numbers; nobody wants to train those unawares."""
    state = load_file(folder / "model.safetensors")
    missing = next(name for name in state if "layers.1.mlp" in name)
    del state[missing]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"my-model .*layers\.1\.mlp")


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    refused(folder, "my-model cannot be loaded")


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    refused(folder, "my-model .*tokenizer")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"not a gguf file")
    refused(tmp_path / "weights.gguf", r"weights\.gguf .*cannot be loaded")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", r"notes\.txt cannot be loaded")


def test_an_unknown_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = refused("nobody/no-such-model-7b", "nobody/no-such-model-7b cannot be loaded")
    assert "built-in name" in text


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "meta", "mps", "xpu:0", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    text = refused(tiny.model_folder(), r"key 'model\.device'", device=device)
    assert repr(device) in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_cuda() -> None:
    refused(tiny.model_folder(), r"'cuda' but torch sees no CUDA device; use cpu or auto", device="cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_compute_types() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


def test_lora_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    refused(tiny.model_folder(), r"lora_rank.*needs peft: pip install", lora_rank=4)


SHAPE = {"hidden_size": 32, "vocab_size": 512}
OUTSIDE = {
    # Attention of its own, with biases by distance instead of positions.
    "bloom": {**SHAPE, "n_layer": 2, "n_head": 4},
    # No attention at all: a recurrence cannot share prefixes by attention.
    "mamba": {**SHAPE, "num_hidden_layers": 2, "state_size": 8, "expand": 2, "conv_kernel": 4},
    # Attention in some layers, recurrence in others.
    "recurrent_gemma": {
        **SHAPE,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "lru_width": 32,
        "attention_window_size": 16,
    },
    # Relative positions inside the attention scores.
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 512},
    # Looks at the whole sequence, not only back.
    "bert": {
        **SHAPE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "is_decoder": False,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_model_whose_attention_goes_another_way(kind: str, tmp_path: Path) -> None:
    """A wrong gradient is worse than no run."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **OUTSIDE[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / kind)
    tiny.tokenizer().save_pretrained(tmp_path / kind)
    text = refused(tmp_path / kind, "does not fit the in-process engine")
    assert type(model).__name__ in text


def test_what_the_check_is_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in our attention of the kind a new model family could bring is caught at load time."""
    import memtrain.engines.torch.attention as attention

    right = attention.packed_attention

    def without_scale(plan: Any, q: Any, k: Any, v: Any, scale: float, *rest: Any, **more: Any) -> torch.Tensor:
        return right(plan, q, k, v, 1.0, *rest, **more)

    monkeypatch.setattr(attention, "packed_attention", without_scale)
    refused(folder, "logits differ by .* from the model's own")


@pytest.mark.parametrize(
    ("family", "cap", "scale"), [("gemma2", 1.0, 1.0), ("cohere", None, 0.25), ("granite", None, 1 / 3)]
)
def test_caps_and_scales_of_logits_are_known(family: str, cap: float | None, scale: float) -> None:
    loaded = tiny.engine(family).loaded
    assert loaded.logit_cap == cap
    assert loaded.logit_scale == pytest.approx(scale)
    if cap:
        with torch.no_grad():
            logits = loaded.logits(torch.randn(5, 32) * 100)
        assert float(logits.abs().max()) <= cap
