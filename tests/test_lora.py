"""LoRA: only the adapter trains, the base is its reference, and what it exports is a model of its own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny
import torch
from test_engine_state import steps, weights

from memtrain.engines.base import LossConfig, OptimiserConfig
from memtrain.errors import UserError

PROMPT = tiny.ids(random.Random(0), 30)


def test_lora_trains_the_adapter_alone_and_its_reference_is_the_base() -> None:
    engine = tiny.engine("qwen3", lora_rank=4)
    plain = tiny.engine("qwen3")
    start = tiny.run(plain.score(PROMPT, (9, 10)))
    assert tiny.run(engine.score(PROMPT, (9, 10))) == pytest.approx(start, abs=1e-6)
    tiny.run(engine.anchor())
    before = weights(engine)
    steps(engine, range(2))
    changed = {name for name, value in weights(engine).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert {name.rsplit("lora_", 1)[0].split(".")[-2] for name in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert set(engine._adamw().masters) == {name for name in before if "lora_" in name}
    assert tiny.run(engine.score(PROMPT, (9, 10), "reference")) == pytest.approx(start, abs=1e-6)
    assert tiny.run(engine.score(PROMPT, (9, 10))) != pytest.approx(start, abs=1e-3)


def test_lora_gradients_over_shared_prefixes_are_those_of_separate_rows() -> None:
    shared, apart = (
        tiny.engine(lora_rank=4),
        tiny.engine(lora_rank=4, share_prefixes=False, gradient_checkpointing=True),
    )
    with torch.no_grad():
        mine, other = dict(shared.loaded.model.named_parameters()), dict(apart.loaded.model.named_parameters())
        for name in mine:
            if "lora_" in name:  # also the half that starts at zero
                mine[name].normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
                other[name].copy_(mine[name])
    config = LossConfig(kl_coef=0.0, cross_entropy_coef=0.5)
    for engine in (shared, apart):
        tiny.run(engine.update(tiny.joint_rows(0), config, OptimiserConfig(grad_clip=0.0)))
    states = [engine._adamw().state_tensors() for engine in (shared, apart)]
    for key in states[0]:
        if key.startswith("exp_avg/"):
            assert float((states[0][key] - states[1][key]).norm()) < 1e-4 * float(states[1][key].norm())


def test_an_exported_adapter_is_a_model_of_its_own(tmp_path: Path) -> None:
    engine = tiny.engine("qwen3", lora_rank=4)
    steps(engine, range(2))
    folder = tmp_path / "model"
    folder.mkdir()
    tiny.run(engine.export(folder))
    assert (folder / "adapter_config.json").is_file()
    again = tiny.engine(folder)
    assert tiny.run(again.score(PROMPT, (9, 10, 11))) == pytest.approx(
        tiny.run(engine.score(PROMPT, (9, 10, 11))), abs=1e-5
    )
    # Trained further, its own start is its reference and every weight is open.
    tiny.run(again.anchor())
    start = tiny.run(again.score(PROMPT, (9, 10, 11)))
    steps(again, range(1))
    assert tiny.run(again.score(PROMPT, (9, 10, 11), "reference")) == start
    assert tiny.run(again.score(PROMPT, (9, 10, 11))) != start


def test_an_adapter_on_an_adapter_keeps_both(tmp_path: Path) -> None:
    first = tiny.engine(lora_rank=4)
    steps(first, range(1))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    tiny.run(first.export(tmp_path / "first"))
    second = tiny.engine(tmp_path / "first", lora_rank=2)
    steps(second, range(1, 2))
    tiny.run(second.export(tmp_path / "second"))
    again = tiny.run(tiny.engine(tmp_path / "second").score(PROMPT, (9, 10, 11)))
    assert again == pytest.approx(tiny.run(second.score(PROMPT, (9, 10, 11))), abs=1e-5)


def test_an_adapter_whose_base_is_gone_says_so(tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base")
    engine = tiny.engine(base, lora_rank=2)
    (tmp_path / "model").mkdir()
    tiny.run(engine.export(tmp_path / "model"))
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="base"):
        tiny.engine(tmp_path / "model")
