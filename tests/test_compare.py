"""The comparison: rows and numbers by hand, the whole road with a tiny model, and a kill on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tiny_questions import write_questions

from memtrain import task_training
from memtrain.compare import run as compare_run
from memtrain.compare.rows import BASE, BOTH, LONGER, MEMTRAIN, TASK, changed_by, variants
from memtrain.compare.table import AVERAGE, difference, numbers, row_numbers
from memtrain.errors import UserError
from memtrain.recipe import Recipe, load_recipe


def recipe(folder: Path, **changes: dict[str, Any]) -> Recipe:
    """Seconds for the whole table."""
    qa = {
        "questions": str(write_questions(folder / "questions.json")),
        "train_tokens": 150,
        "lengths": [120, 240],
        "number": 4,
        "reward": "likelihood",
        "train": {
            "steps": 2,
            "documents_per_step": 2,
            "group_size": 3,
            "lr": 1e-3,
            "warmup_steps": 0,
            "kl_coef": 0.0,
            "micro_batch_tokens": 512,
        },
    }
    settings = {"qa": qa, "log": {"samples": 1, "checkpoint_every": 1}, "train": {"steps": 2}, **changes}
    return tiny_run.small(**settings)


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_an_ablation_changes_one_thing() -> None:
    full = load_recipe("compare-cpu")
    changed = {
        name: [key for key in full.model_dump() if full.model_dump()[key] != changed_by(full, name).model_dump()[key]]
        for name in ("end-to-end", "decoupled", "exact-reward", "unpaired-probes", "memory-first", "no-priming")
    }
    assert changed == {
        "end-to-end": ["tasks"],
        "decoupled": ["tasks"],
        "exact-reward": ["tasks"],
        "unpaired-probes": ["tasks"],
        "memory-first": ["memory"],
        "no-priming": ["priming"],
    }
    assert changed_by(full, "likelihood-reward") == full


def test_what_changes_nothing_is_not_run() -> None:
    full = load_recipe("compare-cpu", ['compare.ablations=["likelihood-reward", "decoupled"]'])
    assert [variant.name for variant in variants(full)] == [MEMTRAIN, "decoupled"]


# ---- numbers --------------------------------------------------------------------------------------------------------


def record(document: str, length: int, score: float, kind: str = "reader") -> dict[str, Any]:
    values = dict.fromkeys(("exact", "em", "f1", "contains", "answered", "gain"), score)
    return {"kind": kind, "document": document, "length": length, **values}


def test_a_question_is_its_mean_over_seeds_and_lengths() -> None:
    by_seed = {
        0: [record("a", 10, 1.0), record("a", 20, 0.0), record("b", 10, 0.0), record("b", 20, 0.0)],
        1: [record("a", 10, 1.0), record("a", 20, 1.0), record("b", 10, 0.0), record("b", 20, 1.0)],
    }
    found = row_numbers(by_seed, 200, 0)
    assert found[10]["exact"]["mean"] == 0.5
    assert found[20]["exact"]["mean"] == 0.5
    assert found[AVERAGE]["exact"]["mean"] == pytest.approx((0.75 + 0.25) / 2)
    assert found[AVERAGE]["exact"]["n"] == 2  # questions, not records


def test_differences_are_paired_and_listed_by_seed() -> None:
    answers = {
        TASK: {0: [record(str(i), 10, 0.0) for i in range(20)], 1: [record(str(i), 10, 0.0) for i in range(20)]},
        BOTH: {0: [record(str(i), 10, 1.0) for i in range(20)], 1: [record(str(i), 10, 0.0) for i in range(20)]},
    }
    found = difference(answers, BOTH, TASK, 200, 0)
    assert found["metrics"]["exact"]["mean"] == 0.5
    assert found["metrics"]["exact"]["ci95"] == [0.5, 0.5]  # every question gained the same
    assert found["by_seed"] == {"0": 1.0, "1": 0.0}
    assert found["p"] < 0.001
    turned = difference(answers, TASK, BOTH, 200, 0)
    assert turned["metrics"]["exact"]["mean"] == -0.5


def test_what_a_memory_kept_is_told_from_what_was_said() -> None:
    told = {"memory": "Ulm, a city; in 1200", "gold": ["1200"]}
    lost = {"memory": "nothing", "gold": ["1200"]}
    by_seed = {0: [record("a", 10, 0.0) | told, record("b", 10, 0.0) | lost]}
    assert row_numbers(by_seed, 100, 0)[10]["kept"]["mean"] == 0.5


def test_only_rows_that_are_there_are_compared() -> None:
    found = numbers({BASE: {0: [record("a", 10, 1.0), record("b", 10, 0.0)]}}, 100, 0)
    assert list(found["rows"]) == [BASE]
    assert found["differences"] == []


# ---- the whole road -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    settings = {"compare": {"seeds": [1, 2], "ablations": ["no-priming", "likelihood-reward"]}}
    compare_run.compare(recipe(folder, **settings), folder / "out")
    return folder


def test_every_row_of_every_seed_is_there(finished: Path) -> None:
    data = json.loads((finished / "out" / "compare.json").read_text())
    assert list(data["rows"]) == [BASE, MEMTRAIN, TASK, BOTH, LONGER]
    assert list(data["ablations"]) == ["no-priming", "no-priming-task"]
    assert data["unchanged"] == ["likelihood-reward"]
    for row in data["rows"].values():
        assert set(row) == {"0", "120", "240"}
        assert row["0"]["exact"]["n"] == 4
    assert [set(found["by_seed"]) for found in data["differences"]] == [{"1", "2"}] * 3 + [{"1"}] * 2
    assert set(data["controls"][BASE]) == {"closed book", "full context", "bm25"}
    report = (finished / "out" / "compare.md").read_text()
    for title in (
        "+ MemTrain + task RL minus + task RL",
        "MemTrain's compute added",
        "no-priming + task RL",
        "Where did",
    ):
        assert title in report
    for name in ("compare-exact.png", "compare-kept.png", "compare-gain.png", "curves.png"):
        assert (finished / "out" / name).read_bytes()[:4] == b"\x89PNG"


def test_the_longer_row_goes_on_from_the_task_row(finished: Path) -> None:
    """Its first steps are the task row's, then as many more as MemTrain's seconds pay for."""
    for seed in (1, 2):
        folder = finished / "out" / f"seed-{seed}"
        plan = json.loads((folder / "task-longer.json").read_text())
        steps, longer = (tiny_run.metrics(folder / name) for name in ("task", "task-longer"))
        assert longer[: len(steps)] == steps
        assert len(longer) == 2 + plan["extra"]
        assert plan["extra"] == round(plan["memtrain_seconds"] / (plan["task_seconds"] / 2))


def test_a_busy_machine_is_not_training_time(tmp_path: Path) -> None:
    rows = [("priming", 2.0), ("priming", 2.0), ("priming", 900.0), ("grpo", 5.0), ("grpo", 6.0), ("grpo", 7.0)]
    lines = [json.dumps({"stage": stage, "seconds": seconds}) for stage, seconds in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert compare_run.training_seconds(tmp_path) == 3 * 2.0 + 3 * 6.0


def test_a_second_call_trains_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(task_training, "run", never)
    monkeypatch.setattr(compare_run.pipeline, "train", never)
    monkeypatch.setattr(task_training, "measure", never)
    before = json.loads((finished / "out" / "compare.json").read_text())
    settings = {"compare": {"seeds": [1, 2], "ablations": ["no-priming", "likelihood-reward"]}}
    compare_run.compare(recipe(finished, **settings), finished / "out")
    assert json.loads((finished / "out" / "compare.json").read_text()) == before


def test_other_settings_are_refused(finished: Path) -> None:
    with pytest.raises(UserError, match=r"train\.steps = 2, now it is 3"):
        compare_run.compare(recipe(finished, train={"steps": 3}), finished / "out")
    with pytest.raises(UserError, match=r"memory\.memory_tokens"):
        compare_run.compare(recipe(finished, memory={"memory_tokens": 9}), finished / "out")


def test_a_killed_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of a task stage: the same command ends with the weights of an unbroken one."""
    settings = recipe(tmp_path, compare={"equal_compute": False})
    trained = task_training.Trainer.learn
    armed = [True]

    async def stop(self: Any, experience: Any, number: int) -> Any:
        if armed and number == 2 and self.recipe.tasks.mode == "end-to-end":
            armed.clear()
            raise KeyboardInterrupt
        return await trained(self, experience, number)

    monkeypatch.setattr(task_training.Trainer, "learn", stop)
    with pytest.raises(KeyboardInterrupt):
        compare_run.compare(settings, tmp_path / "out")
    assert not (tmp_path / "out" / "compare.json").exists()
    compare_run.compare(settings, tmp_path / "out")
    compare_run.compare(settings, tmp_path / "unbroken")
    found = [json.loads((tmp_path / name / f"eval/{BOTH}-seed-0.json").read_text()) for name in ("out", "unbroken")]
    assert found[0] == found[1]


# ---- task training alone --------------------------------------------------------------------------------------------


def test_mini_batches_update_more_than_once(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    train = settings.qa.train.model_copy(update={"mini_batches": 2, "old_logprobs": "sampler"})
    settings = settings.model_copy(update={"qa": settings.qa.model_copy(update={"train": train})})
    task_training.run(settings, tmp_path / "run", resume=False)
    assert len(tiny_run.metrics(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"questions": ""}, "qa.questions"),
        ({"train_tokens": 20}, "qa.train_tokens to"),
        ({"train_tokens": 100_000}, "more distractors"),
        ({"held_out": 0.9999}, "qa.held_out"),
    ],
)
def test_impossible_questions_end_in_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    settings = recipe(tmp_path)
    settings = settings.model_copy(update={"qa": settings.qa.model_copy(update=changes)})
    with pytest.raises(UserError, match=sentence):
        task_training.run(settings, tmp_path / "run", resume=False)
    assert not (tmp_path / "run" / "recipe.json").exists()


# ---- search QA ------------------------------------------------------------------------------------------------------


def test_the_searcher_is_compared_like_the_reader(tmp_path: Path) -> None:
    """qa.kind = "search": the same rows, one score instead of one a length, other controls."""
    settings = recipe(tmp_path, search={"turn_tokens": 16, "result_tokens": 64, "memory_tokens": 16, "max_turns": 2})
    qa = settings.qa.model_copy(update={"kind": "search"})
    compare_run.compare(settings.model_copy(update={"qa": qa}), tmp_path / "out")
    data = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(data["rows"]) == [BASE, MEMTRAIN, TASK, BOTH, LONGER]
    assert data["rows"][BASE]["0"]["exact"]["n"] == 2  # four questions, two at once
    assert set(data["controls"][BASE]) == {"closed book", "one search"}
    searches = [row["searches"] for row in tiny_run.metrics(tmp_path / "out" / "seed-0" / "task")]
    assert len(searches) == 2
