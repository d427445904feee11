"""The card of an export tells what was measured, nothing else, and nothing of the machine."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
import yaml
from export_runs import card, engine_run, exported, write_recipe
from matplotlib.image import imread

from memtrain.memory.prompts import Prompts
from memtrain.publish import export as publishing
from memtrain.publish import results, scrub
from memtrain.publish.card import Facts, write_card
from memtrain.publish.origin import hub_dataset, origin_of
from memtrain.publish.source import find
from memtrain.publish.weights import Written
from memtrain.recipe import Recipe, parse_recipe
from memtrain.report.summary import markdown_table, read_summary, table
from memtrain.rl.checkpoint import Position

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tiny_run.unbroken(), tmp_path_factory.mktemp("card") / "my-model", base="owner/tiny", licence="mit")


def metadata(folder: Path) -> dict[str, Any]:
    head, text = card(folder).split("---\n", 2)[1:]
    assert text.startswith("\n# ")
    return dict(yaml.safe_load(head))


def test_head(finished: Path) -> None:
    assert metadata(finished) == {
        "base_model": "owner/tiny",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["memtrain", "memory", "long-context", "grpo"],
    }


def test_numbers_are_the_runs(finished: Path) -> None:
    text, summary = card(finished), read_summary(tiny_run.unbroken())
    head, *rows = table(summary)
    assert markdown_table([head]) in text
    shown = {tuple(line.strip("| ").split(" | ")) for line in text.replace("<br>", " ").splitlines() if " | " in line}
    assert {tuple(row) for row in rows} <= {tuple(cell.replace("&nbsp;", " ") for cell in row) for row in shown}
    manifest = json.loads((tiny_run.unbroken() / "documents" / "manifest.json").read_text())
    assert f"| sha256 | `{manifest['corpus']['sha256']}` |" in text
    assert "| training documents | 5, " in text
    assert "Trained for 2 steps of priming and 3 steps of GRPO." in text
    assert summary["fingerprint"] in text
    for picture in ("curves.png", "before_after.png"):
        assert f"]({picture})" in text
        assert imread(finished / picture).std() > 0.05
    named = set(re.findall(r"\]\(([\w.-]+)\)", text))
    assert all((finished / name).is_file() for name in named)
    assert "| licence | not known" in text


def test_recipe_comes_back(finished: Path) -> None:
    shown = json.loads((finished / "memtrain.json").read_text(encoding="utf-8"))
    back, own = parse_recipe(shown, "card"), tiny_run.small()
    assert back.model_copy(update={"model": own.model, "corpus": own.corpus}) == own
    assert json.loads(re.findall(r"```json\n(.*?)```", card(finished), re.S)[0]) == shown
    toml = re.findall(r"```toml\n(.*?)```", card(finished), re.S)[0]
    assert "chunk_tokens = 96" in toml
    assert "top_p" not in toml  # as by default


def test_nothing_of_the_machine(finished: Path) -> None:
    """No path, no host, no user, no variable, in any file, card or binary."""
    words = {
        str(tiny_run.home()),
        str(tiny.model_folder()),
        str(Path.home()),
        str(finished.parent),
        os.getcwd(),
        "/tmp/",
    }
    words |= {word for word in (socket.gethostname(), getpass.getuser()) if len(word) > 4}
    words |= {value for key, value in os.environ.items() if "TOKEN" in key and len(value) > 4}
    for file in finished.iterdir():
        content = file.read_bytes()
        found = [word for word in words if word.encode() in content]
        assert not found, f"{file.name}: {found}"
    for name in ("README.md", "memtrain.json", "summary.json", "config.json", "tokenizer_config.json"):
        text = (finished / name).read_text(encoding="utf-8")
        assert not re.findall(r"(?<![\w:/.\]])/(?:home|root|tmp|usr|var|mnt|data|opt|Users)\b[^\s]*", text)
    assert "-with-glibc" not in (finished / "summary.json").read_text()


def test_what_is_scrubbed() -> None:
    recipe = parse_recipe(
        {
            "model": {"name": "/home/ann/models/base"},
            "corpus": {"source": "/mnt/secret-project/pages.jsonl"},
            "documents": {"neighbours": "dense:/home/ann/bge"},
            "sampler": {
                "kind": "vllm-server",
                "url": "http://gpu7.internal:8000",
                "adapter_folder": "/shared/adapters",
            },
            "tinker": {"base_url": "http://10.1.2.3:9000"},
            "search": {"url": "https://user:secret@search.internal/x"},
            "qa": {"questions": "~/private/q.json", "passages": ["../deep/p.jsonl", "s3://bucket/key/p2.jsonl"]},
        },
        "test",
    )
    data = scrub.public_recipe(recipe, "base")
    text = json.dumps(data)
    for word in ("ann", "secret", "internal", "10.1", "shared", "private", "deep", "bucket"):
        assert word not in text
    assert data["documents"]["neighbours"] == "dense:bge"
    assert data["corpus"]["source"] == "pages.jsonl"
    assert data["qa"]["passages"] == ["p.jsonl", "p2.jsonl"]
    parse_recipe(data, "scrubbed")  # still a recipe
    kept = Recipe(corpus={"source": "hf:wikimedia/wikipedia:20231101.en"}, model={"name": "Qwen/Qwen3-4B"})  # type: ignore[arg-type]
    assert scrub.public_recipe(kept, kept.model.name) == kept.model_dump(mode="json")


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("read /home/ann/a.txt, twice", "read a.txt, twice"),
        ("in ~/x/y and ./z/w", "in y and w"),
        ("https://arxiv.org/abs/2606.03197 and/or 3/4", "https://arxiv.org/abs/2606.03197 and/or 3/4"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
    ],
)
def test_paths_in_texts(text: str, cut: str) -> None:
    assert scrub.public(text) == cut


def test_its_program_runs_and_prompts_as_memtrain_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_run(tmp_path / "run")
    out = exported(tmp_path / "run", tmp_path / "mine")
    (tmp_path / "book.txt").write_text(
        "Ada Lovelace wrote to Charles Babbage about the engine. " * 12, encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", card(out), re.S)[0]
    scope: dict[str, Any] = {}
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(code, scope)
    assert told.getvalue().startswith("(")
    prompts = Prompts(engine.tokenizer, tiny_run.small().memory)
    parts = {"question": "Who?", "section": "Ada.", "memory": "Notes {question} so far."}
    filled = re.sub(r"\{(question|section|memory)\}", lambda match: parts[match[1]], scope["WRITE"])
    assert scope["tokenizer"].encode(filled, add_special_tokens=False) == prompts.write(*parts.values())
    filled = re.sub(r"\{(question|memory)\}", lambda match: parts[match[1]], scope["ANSWER"])
    assert scope["tokenizer"].encode(filled, add_special_tokens=False) == prompts.answer("Who?", parts["memory"])


def test_curves_end_where_the_weights_do() -> None:
    rows = [{"stage": "priming", "step": 9}, {"stage": "grpo", "step": 2}, {"stage": "grpo", "step": 3}]
    run = tiny_run.unbroken()
    for folder, kept in (("model", 3), ("checkpoints/grpo-000002", 2)):
        assert sum(results._passed(find(run / folder), row) for row in rows) == kept
    assert not results._passed(replace(find(run), position=Position("priming", 2)), rows[1])


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    engine_run(tmp_path / "run")
    out = exported(tmp_path / "run", tmp_path / "out")
    text = card(out)
    assert "These weights have not been evaluated: there is nothing to report." in text
    assert "| metric |" not in text
    assert "![" not in text
    assert not (out / "summary.json").exists()
    assert "base_model" not in metadata(out)  # a local folder: nothing is made up
    assert "license" not in metadata(out)
    assert "No licence is stated here" in text


def test_a_checkpoint_on_the_way_has_no_later_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "draw", lambda *_: [])  # most of the time, and not asked for here
    run = tmp_path / "run"
    shutil.copytree(tiny_run.unbroken(), run)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["grpo-000002", "grpo-000003"]
    (run / "eval" / "step-2.json").unlink()
    out = exported(run, tmp_path / "middle", checkpoint="grpo-000002")
    text = card(out)
    assert "This is the checkpoint `grpo-000002` of the run" in text
    assert "**These very weights have not been evaluated.**" in text
    data = read_summary(out)
    assert "after" not in data
    assert "difference" not in data
    assert data["before"] == read_summary(run)["before"]
    last = exported(run, tmp_path / "last", checkpoint="latest")
    assert read_summary(last)["after"] == read_summary(run)["after"]
    assert "This is the checkpoint" not in card(last)
    shutil.copyfile(run / "eval" / "after.json", run / "eval" / "step-2.json")  # as if it had been measured
    measured = exported(run, tmp_path / "measured", checkpoint="grpo-000002")
    assert read_summary(measured)["after"] == read_summary(run)["after"]


def test_a_task_run_has_no_proxy_numbers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    engine_run(run)
    (run / "summary.json").write_text(json.dumps({"recipe": "task", "steps": 3, "questions": 9, "model": "/x/y/model"}))
    out = exported(run, tmp_path / "out")
    assert "These weights have not been evaluated" in card(out)
    assert json.loads((out / "summary.json").read_text())["model"] == "model"


def test_a_model_without_a_recipe(tmp_path: Path) -> None:
    out = exported(tiny.model_folder(), tmp_path / "out")
    assert "What the model was trained on is not recorded" in card(out)
    assert not (out / "memtrain.json").exists()


def test_origins(tmp_path: Path) -> None:
    built_in = origin_of("smollm2-135m")
    assert (built_in.hub_id, built_in.licence) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert not built_in.is_hub  # dequantised: an adapter does not fit the hub's weights exactly
    assert "dequantised" in built_in.note
    assert origin_of("Qwen/Qwen3-4B").hub_id == "Qwen/Qwen3-4B"
    assert origin_of("Qwen/Qwen3-4B").licence is None
    (tmp_path / "first" / "model").mkdir(parents=True)
    write_recipe(tmp_path / "first", parse_recipe({"name": "stage-one", "model": "Qwen/Qwen3-4B"}, "test"))
    second = origin_of(str(tmp_path / "first" / "model"))
    assert second.hub_id == "Qwen/Qwen3-4B"
    assert "earlier memtrain run, `stage-one`" in second.note
    assert not second.is_hub
    assert hub_dataset("hf:wikimedia/wikipedia:20231101.en") == "wikimedia/wikipedia"
    assert hub_dataset("enwiki-sample") is None


def test_hub_data_and_adapter_in_the_head(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {"corpus": "hf:wikimedia/wikipedia", "model": {"name": "Qwen/Qwen3-4B", "lora_rank": 8}}, "test"
    )
    facts = Facts(
        title="x",
        name="me/x",
        origin=origin_of("Qwen/Qwen3-4B"),
        licence=None,
        written=Written(1234, "float32", 8),
        checkpoint="",
        recipe=recipe,
        public_recipe=scrub.public_recipe(recipe, "Qwen/Qwen3-4B"),
        summary={},
        manifest={},
        tokenizer=tiny.tokenizer(),
    )
    write_card(facts, tmp_path)
    head = metadata(tmp_path)
    assert (head["datasets"], head["library_name"]) == (["wikimedia/wikipedia"], "peft")
    assert head["base_model_relation"] == "adapter"
    assert "AutoPeftModelForCausalLM" in card(tmp_path)
    assert "no checksum" in card(tmp_path)
