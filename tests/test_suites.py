"""Label-free suites: the reader and its controls on scripted answers, the command from a corpus to table and plot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
from scripted_engine import ScriptedEngine
from test_after_reading import count, recipe_of
from test_ruler import NEEDLE, POOL

from memtrain import suites
from memtrain.commands.suite import suite
from memtrain.errors import UserError
from memtrain.evaluation.long_qa import BM25, CLOSED, FULL, NO_LENGTH, READER
from memtrain.evaluation.ruler.tasks import RulerMaker
from memtrain.evaluation.suites import AVERAGE, REPLY_TOKENS, evaluate, summary, with_room
from memtrain.recipe import Recipe


def careful(prompt: str, _: int) -> str:
    """Keeps every needle it has seen; answers with those it is asked for."""
    found = dict.fromkeys(match.group() for match in NEEDLE.finditer(prompt))
    if "Rewrite the notes" in prompt:
        return " ".join(found) or "nothing"
    keys = re.findall(r"[a-z]+-[a-z]+", prompt.split("in the text?")[0])
    values = [value for text in found for _, key, value in NEEDLE.findall(text) if key in keys]
    return f"\\boxed{{{', '.join(values)}}}"


@pytest.mark.parametrize("context", [100_000, 2_000])
def test_the_reader_beside_its_controls(context: int) -> None:
    maker = RulerMaker(POOL, count)
    names, lengths = ("niah-multi-key", "niah-multi-query"), (1_500, 5_000)
    samples = [maker.make(name, tokens, number, 2) for name in names for tokens in lengths for number in range(3)]
    engine, ticks = ScriptedEngine(tiny.tokenizer(), careful, context), list[int]()
    records = tiny.run(evaluate(engine, samples, [], with_room(recipe_of(900)), count, lambda: ticks.append(1)))
    found = summary(records, 100, 0)
    assert len(ticks) == 12
    assert list(found) == [*names, AVERAGE]
    for name in names:
        assert [found[name][READER][length]["match_all"]["mean"] for length in lengths] == [1.0, 1.0]
        assert set(found[name][FULL]) == ({1_500, 5_000} if context > 5_000 else {1_500})
        assert set(found[name][CLOSED]) == {NO_LENGTH}
        assert found[name][CLOSED][NO_LENGTH]["match_all"] == {"mean": 0.0, "ci95": [0.0, 0.0], "n": 3}
        assert found[name][CLOSED][NO_LENGTH]["answered"]["mean"] == 1.0
    assert found["niah-multi-key"][BM25][5_000]["match_all"]["mean"] == 1.0
    # A chunk's worth of paragraphs does not hold four needles that lie apart.
    assert found["niah-multi-query"][BM25][5_000]["match_all"]["mean"] < 1.0
    assert found["niah-multi-query"][BM25][5_000]["match_part"]["mean"] == 1.0
    assert "match_part" not in found["niah-multi-key"][READER][1_500]
    assert "exact" not in found["niah-multi-query"][READER][1_500]
    mean = found["niah-multi-query"][BM25][5_000]["match_all"]["mean"]
    assert found[AVERAGE][BM25][5_000]["match_all"]["mean"] == pytest.approx((1 + mean) / 2)
    assert found[AVERAGE][BM25][5_000]["match_all"]["n"] == 6
    assert all(params.max_tokens in (400, REPLY_TOKENS) for _, params, _ in engine.sampled)


def test_a_failed_reply_is_wrong() -> None:
    sample = RulerMaker(POOL, count).make("niah-single", 1_000, 0, 0)
    records = tiny.run(
        evaluate(ScriptedEngine(tiny.tokenizer(), lambda *_: ""), [sample], [], with_room(recipe_of()), count)
    )
    assert {record["match_all"] for record in records} == {record["answered"] for record in records} == {0.0}


# ---- the command ----------------------------------------------------------------------------------------------------


def recipe(**sections: dict[str, Any]) -> Recipe:
    return tiny_run.small(**sections)


def test_from_a_corpus_to_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tasks = ("niah-single", "vt", "after-reading", "vt")
    suites.run(recipe(), tasks, (600, 450), 2, tmp_path / "out")
    shown = capfd.readouterr()
    result = json.loads((tmp_path / "out" / "suites.json").read_text())
    assert result["tasks"] == ["niah-single", "vt", "after-reading"]
    assert result["lengths"] == [450, 600]
    assert set(result["summary"]) == {"niah-single", "vt", "after-reading-needles", "after-reading-recall", AVERAGE}
    for task in ("niah-single", "vt"):
        assert set(result["summary"][task]) == {"reader", "bm25", "full context", "closed book"}
        assert set(result["summary"][task]["reader"]) == {"450", "600"}
        assert result["summary"][task]["reader"]["450"]["match_all"]["n"] == 2
    assert result["cost_of_not_knowing"]["after-reading-needles"]["450"]["match_all"]["n"] == 2
    readings = [record for record in result["records"] if record["kind"] == "reader"]
    assert all(record["n_tokens"] <= record["length"] and record["chunks"] > 1 for record in readings)
    assert all(len(record["depths"]) == 5 for record in readings if record["task"] == "vt")
    page = (tmp_path / "out" / "suites.md").read_text()
    assert page.count("\n| vt | reader |") == 2
    assert "Questions about this text will be asked later" in page
    assert (tmp_path / "out" / "suites.png").read_bytes()[:4] == b"\x89PNG"
    assert "reader, asked later" in shown.out
    assert "answers found change by" in shown.out
    assert "| task | answers from | tokens | n | answers found | any found | exact match | F1 | boxed |" in page


def test_the_same_command_gives_the_same_records(tmp_path: Path) -> None:
    for name in ("one", "two"):
        suites.run(recipe(), ["niah-single"], [200], 2, tmp_path / name)
    assert (tmp_path / "one" / "suites.json").read_text() == (tmp_path / "two" / "suites.json").read_text()


@pytest.mark.parametrize(
    ("tasks", "lengths", "number", "changed", "said"),
    [
        (["niah-singel"], [400], 1, {}, r"no task is called 'niah-singel': did you mean niah-single\? there are"),
        ([], [400], 1, {}, "at least one task"),
        (["vt"], [], 1, {}, "at least one task, lengths"),
        (["vt"], [400], 0, {}, "a --number above 0"),
        (["niah-single", "vt"], [50], 3, {}, r"--lengths 50: texts of .* give lengths of at least \d+$"),
        (["cwe"], [400], 1, {}, r"takes at least 20 different words, but the corpus has \d+ "),
        (["vt"], [400], 1, {"corpus": {"held_out": 0.0001}}, "none of its 30 pages falls on the held-out side"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, tasks: list[str], lengths: list[int], number: int, changed: dict[str, dict[str, Any]], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        suites.run(recipe(**changed), tasks, lengths, number, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_named_length_would_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        suites.run(recipe(), ["vt"], [20], 3, tmp_path / "out")
    least = int(re.findall(r"at least (\d+)", str(caught.value))[0])
    suites.run(recipe(), ["vt"], [least], 3, tmp_path / "out")


def test_the_help_names_every_task() -> None:
    import inspect

    told = str(inspect.signature(suite))
    assert all(f"{task}" in told for task in suites.ALL_TASKS)
