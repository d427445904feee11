"""``memtrain export``: the folder that others load gives what the engine gave, and is whole or not there."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
import torch
from export_runs import engine_run, exported, write_recipe
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from memtrain import pipeline
from memtrain.engines.torch.engine import TorchEngine
from memtrain.engines.torch.model import packed_logits
from memtrain.engines.torch.rollout_model import is_lora, merged_weight
from memtrain.errors import UserError
from memtrain.publish import export as publishing
from memtrain.publish import folder as publish_folder
from memtrain.publish.source import read_recipe
from memtrain.types import SamplingParams

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT = tiny.ids(random.Random(3), 30)
GREEDY = SamplingParams(12, temperature=0.0)


def greedy(model: Any) -> list[int]:
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return out[0, len(PROMPT) :].tolist()


@torch.no_grad()
def check_same(engine: TorchEngine, model: Any) -> None:
    """Greedy tokens and logits of the engine; float32 on both sides."""
    got = list(tiny.run(engine.sample(PROMPT, GREEDY))[0].token_ids)
    assert greedy(model.eval()) == got
    row = [*PROMPT, *got]
    logits = model(input_ids=torch.tensor([row])).logits[0]
    torch.testing.assert_close(logits, packed_logits(engine.loaded, row), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("where", ["", "checkpoints/grpo-000002", "model"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_merged_gives_what_the_engine_gave(tmp_path: Path, lora_rank: int, where: str) -> None:
    engine = engine_run(tmp_path / "run", lora_rank=lora_rank)
    out = exported(tmp_path / "run" / where, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    check_same(engine, model)
    start = AutoModelForCausalLM.from_pretrained(tiny.model_folder())
    assert greedy(start) != greedy(model)  # the training is in it
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == engine.tokenizer.chat_template
    assert tokenizer.encode("Ada met Babbage.") == engine.tokenizer.encode("Ada met Babbage.")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_in_bfloat16_it_is_bit_for_bit_what_sampled(tmp_path: Path, lora_rank: int) -> None:
    """The rounded copy of the masters; a LoRA adapter added in float32 and rounded once."""
    engine = engine_run(tmp_path / "run", lora_rank=lora_rank, dtype="bfloat16")
    found = load_file(exported(tmp_path / "run", tmp_path / "out", checkpoint="latest") / "model.safetensors")
    wanted = dict(engine.loaded.base.named_parameters())
    if lora_rank:
        layers = {name: module for name, module in engine.loaded.base.named_modules() if is_lora(module)}
        wanted = {name: tensor for name, tensor in wanted.items() if not any(name.startswith(n) for n in layers)}
        wanted |= {f"{name}.weight": merged_weight(module) for name, module in layers.items()}
    assert wanted.keys() == found.keys()
    assert all(found[name].dtype == torch.bfloat16 and torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("where", ["checkpoints/grpo-000002", "model"])
def test_adapter_through_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    engine = engine_run(tmp_path / "run", lora_rank=4)
    out = exported(tmp_path / "run" / where, tmp_path / "out", format="adapter", base="owner/tiny")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/tiny"
    assert not (out / "model.safetensors").exists()
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "tiny").symlink_to(tiny.model_folder())
    monkeypatch.chdir(tmp_path)  # stands for the hub: transformers looks for OWNER/NAME here first
    check_same(engine, AutoPeftModelForCausalLM.from_pretrained(out))
    again = tiny.engine(out)  # memtrain loads it, too
    assert tiny.run(again.sample(PROMPT, GREEDY))[0].token_ids == tiny.run(engine.sample(PROMPT, GREEDY))[0].token_ids
    small = exported(tmp_path / "run" / where, tmp_path / "half", format="adapter", base="owner/tiny", dtype="bfloat16")
    assert {t.dtype for t in load_file(small / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_adapter_names_the_hub_id_it_was_trained_on(tmp_path: Path) -> None:
    engine_run(tmp_path / "run", lora_rank=4)
    write_recipe(tmp_path / "run", tiny_run.small(model={"lora_rank": 4, "name": "owner/tiny", "revision": "abc"}))
    out = exported(tmp_path / "run", tmp_path / "out", format="adapter")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/tiny", "abc")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_types(tmp_path: Path, dtype: str) -> None:
    engine = engine_run(tmp_path / "run", lora_rank=4)
    out = exported(tmp_path / "run", tmp_path / "out", dtype=dtype)
    wanted = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == wanted
    got = packed_logits(engine.loaded, list(PROMPT))
    other = model.eval()(input_ids=torch.tensor([PROMPT])).logits[0].float()
    limit = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}[wanted]
    assert float((got - other).norm() / got.norm()) < limit


def test_weights_that_float16_cannot_hold(tmp_path: Path) -> None:
    engine = engine_run(tmp_path / "run")
    with torch.no_grad():
        next(iter(engine.loaded.model.parameters()))[0, 0] = 1e6
    tiny.run(engine.export(tmp_path / "run" / "model"))
    with pytest.raises(UserError, match="not finite in float16; choose --dtype bfloat16"):
        exported(tmp_path / "run", tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_memtrain_reads_and_evaluates_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = exported(tiny_run.unbroken(), tmp_path / "out")
    recipe = read_recipe(out / "memtrain.json")
    assert recipe.memory == tiny_run.small().memory
    (tmp_path / "book.txt").write_text("Ada Lovelace wrote to Charles Babbage. " * 20, encoding="utf-8")
    for model in (out, tiny_run.unbroken() / "model"):
        pipeline.read([tmp_path / "book.txt"], "Who wrote?", str(model), recipe.with_model(device="cpu"))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("answer:")]
    assert len(told) == 2
    assert told[0] == told[1]
    again = exported(out, tmp_path / "again")  # an export of an export
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert (again / "summary.json").read_bytes() == (out / "summary.json").read_bytes()
    assert (again / "curves.png").exists()


def test_checksums_prove_the_folder(tmp_path: Path) -> None:
    out = exported(tiny_run.unbroken(), tmp_path / "out")
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=out, check=False).returncode == 0
    listed = {line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert listed == {file.name for file in out.iterdir()} - {"SHA256SUMS"}
    assert {"README.md", "memtrain.json", "summary.json", "model.safetensors", "generation_config.json"} <= listed
    mask = os.umask(0)
    os.umask(mask)
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o666 & ~mask}


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    engine_run(run)
    out = exported(run, tmp_path / "out")
    (out / "stale.txt").write_text("old")
    with pytest.raises(UserError, match="is not empty; add --overwrite"):
        exported(run, out)
    assert (out / "stale.txt").exists()
    exported(run, out, overwrite=True)
    assert not (out / "stale.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no earlier export"):
        exported(run, tmp_path / "mine", overwrite=True)
    for target in (run, tmp_path, run / "model"):
        with pytest.raises(UserError, match="holds what is to be exported"):
            exported(run, target, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        exported(run, tmp_path / "mine" / "thesis.tex", overwrite=True)
    assert (run / "model" / "model.safetensors").exists()
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", "run"]


def test_a_full_disk_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_run(tmp_path / "run")
    out = exported(tmp_path / "run", tmp_path / "out")
    before = (out / "SHA256SUMS").read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "README.md")

    monkeypatch.setattr(publishing, "write_card", full)
    with pytest.raises(OSError, match="No space left"):
        exported(tmp_path / "run", out, overwrite=True)
    assert (out / "SHA256SUMS").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_killed_export_leaves_nothing_half(tmp_path: Path) -> None:
    """Killed while files are written, and between the two renames that replace an earlier export."""
    out = tmp_path / "out"
    with publish_folder.whole_folder(out) as part:
        (part / "weights").write_text("first")
        publish_folder.write_checksums(part)
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom memtrain.publish import folder\n"
        "replace = os.replace\n"
        "def once(a, b):\n    replace(a, b)\n    print('moved', flush=True)\n    time.sleep(60)\n"
        "if sys.argv[2] == 'renaming': os.replace = once\n"
        "with folder.whole_folder(Path(sys.argv[1])) as part:\n"
        "    (part / 'weights').write_text('second')\n"
        "    if sys.argv[2] == 'writing':\n        print('writing', flush=True)\n        time.sleep(60)\n"
    )
    for when in ("writing", "renaming"):
        child = subprocess.Popen([sys.executable, "-c", code, str(out), when], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        if when == "writing":
            assert (out / "weights").read_text() == "first"
    publish_folder._tidy(out)
    assert (out / "weights").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_mistakes_are_one_clear_sentence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    engine_run(run)
    lora = tmp_path / "lora"
    engine_run(lora, lora_rank=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "recipe.json").write_text("{}")
    (tmp_path / "remote" / "checkpoints" / "grpo-000001").mkdir(parents=True)
    (tmp_path / "remote" / "recipe.json").write_text("{}")
    (tmp_path / "remote" / "checkpoints" / "grpo-000001" / "tinker.json").write_text("{}")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "none", {}, "is not a folder"),
        (tmp_path / "empty", {}, "is no run .* no checkpoint of one and no model"),
        (tmp_path / "young", {}, "no model and no checkpoint yet"),
        (run, {"checkpoint": "grpo-7"}, "no checkpoint 'grpo-7'; it has grpo-000002"),
        (run / "model", {"checkpoint": "latest"}, "--checkpoint needs a run's folder"),
        (run, {"format": "adapter"}, "the run trained all of them; use --format merged"),
        (lora, {"format": "adapter"}, "use --format merged, or say with --base OWNER/NAME"),
        (lora, {"format": "adapter", "base": "a/b", "gguf": "bf16"}, "--gguf needs whole weights"),
        (run, {"private": True}, "--private belongs to --push-to-hub"),
        (tmp_path / "remote", {}, "are on the Tinker server"),
    ]
    for source, wishes, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            exported(source, tmp_path / "out", **wishes)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    engine_run(tmp_path / "run")
    other = tiny.model_folder("qwen3")
    write_recipe(tmp_path / "run", tiny_run.small(model={"name": str(other)}))
    with pytest.raises(UserError, match="does not fit the model of its recipe"):
        exported(tmp_path / "run" / "checkpoints" / "grpo-000002", tmp_path / "out")
    assert not (tmp_path / "out").exists()
