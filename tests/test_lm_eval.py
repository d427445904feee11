"""The agent as a model of lm-eval, with the real library: local tasks, real metrics, no network."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
from scripted_engine import IN_PROMPT, ScriptedEngine

from memtrain.evaluation.flat_prompt import SplitRule, split_prompt
from memtrain.memory.prompts import Prompts
from memtrain.recipe import Recipe, parse_recipe

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from memtrain import lm_eval_run  # noqa: E402
from memtrain.commands.lm_eval import lm_eval as command  # noqa: E402
from memtrain.errors import UserError  # noqa: E402
from memtrain.lm_eval_model import IMPOSSIBLE, MemTrainLM, final_answer  # noqa: E402

FILLER = "The river was low that year and the boats stayed in the harbour. "
PEOPLE = {"Anna": "7", "Bruno": "3", "Clara": "5", "David": "9"}
GENERATE = """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
output_type: multiple_choice
doc_to_choice: ["3", "5", "7", "9"]
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def recipe_of(**memory: Any) -> Recipe:
    settings = {"chunk_tokens": 120, "memory_tokens": 40, "answer_tokens": 24, "style": "compact", **memory}
    return parse_recipe({"memory": settings, "eval": {"bootstrap": 100}}, "test")


def reads(prompt: str, _: int) -> str:
    """Notes the house number where it is seen; gets Bruno's wrong, and answers from the notes."""
    for name, house in PEOPLE.items():
        if name in prompt:
            house = "9" if name == "Bruno" else house
            known = f"house {house}" in prompt or (name == "Bruno" and "house 3" in prompt)
            if "boxed" in prompt:
                return f"It is \\boxed{{{house}}}" if known else "\\boxed{no idea}"
            return f"{name}: house {house}." if known else "Nothing yet."
    return "Nothing yet."


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Folder of two tasks over one file of four stories, several chunks long each."""
    lines = []
    for name, house in PEOPLE.items():
        story = f"{FILLER * 12}{name} moved into house {house}. {FILLER * 12}"
        lines.append({"story": story, "question": f"Which house has {name}?", "answer": house})
        lines[-1]["gold"] = "3579".index(house)  # type: ignore[assignment]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'stories.jsonl'}}}, "
        f"cache_dir: {tmp_path / 'cache'}}}\ntest_split: test\n"
        'doc_to_text: "Read.\\n\\n{{story}}\\n\\nQuestion: {{question}}\\nAnswer:"'
    )
    for name, rest in {"local_say": GENERATE, "local_choose": CHOOSE}.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{common}{rest}")
    return tmp_path


def agent(reply: Any = reads, context: int = 100_000, **memory: Any) -> MemTrainLM:
    return MemTrainLM(ScriptedEngine(tiny.tokenizer(), reply, context), recipe_of(**memory), SplitRule(64, 16))


def run(lm: MemTrainLM, folder: Path, *names: str, limit: int | None = None) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval_run.evaluate(lm, lm_eval_run.task_names(names, manager), manager, limit)


def request(kind: str, *args: Any, document: int = 0) -> Instance:
    return Instance(kind, {}, args, 0, metadata=("task", document, 1))  # type: ignore[arg-type]


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_scores_are_what_the_replies_imply(tasks: Path) -> None:
    lm = agent()
    found = run(lm, tasks, "local_*")
    scores = {line["task"]: line["score"] for line in lm_eval_run.scores_of(found, lm.failures, 200, 0)}
    assert found["results"]["local_say"]["exact_match,none"] == 0.75  # Bruno is misread
    assert found["results"]["local_choose"]["acc,none"] == 0.75
    assert {name: (score["mean"], score["n"]) for name, score in scores.items()} == {
        "local_say": (0.75, 4),
        "local_choose": (0.75, 4),
    }
    low, high = scores["local_say"]["ci95"]
    assert 0 <= low < 0.75 < high <= 1
    told = lm.told["local_say", 0]
    assert told["question"] == "Read.\n\nQuestion: Which house has Anna?\nAnswer:"
    assert told["chunks"] > 2
    assert told["memory"] == "Anna: house 7."
    engine: Any = lm.engine
    answers = [prompt for prompt, _, _ in engine.sampled if "boxed" in prompt]
    assert answers
    assert not any("river" in prompt for prompt in answers)  # from the memory alone
    assert all(len(tiny.tokenizer().encode(prompt)) < 400 for prompt, _, _ in engine.sampled)


def test_choices_of_one_context_share_one_reading_and_say_what_is_greedy() -> None:
    lm = agent()
    prompt = f"{FILLER * 12}Anna moved into house 7.\n\nQuestion: Which house has Anna?"
    other = prompt.replace("Anna", "Clara").replace("house 7", "house 5")
    asked = [request("loglikelihood", text, f" {n}") for n in "57" for text in (prompt, other)]
    found = lm.loglikelihood(asked)
    engine: Any = lm.engine
    reading = [p for p, _, _ in engine.sampled if "boxed" not in p]
    assert len(reading) == sum(told["chunks"] for told in lm.told.values()) * 2  # two contexts, one name in `told`
    right, wrong = [found[1], found[2]], [found[0], found[3]]
    # "7" and "}" both stand in the prompt with the memory "Anna: house 7."; of the other choice only "}" does.
    assert [score for score, _ in right] == [2 * IN_PROMPT] * 2
    assert all(score < 2 * IN_PROMPT for score, _ in wrong)
    assert not any(greedy for _, greedy in found)  # "It is \boxed{7}" begins otherwise after "\boxed{"
    prompts = Prompts(engine.tokenizer, lm.recipe.memory)
    lead = engine.tokenizer.decode(list(prompts.target("7").prefix_ids))
    lm = agent(lambda text, n: "7} and on" if text.endswith(lead) else reads(text, n))
    assert [greedy for _, greedy in lm.loglikelihood(asked)] == [False, False, True, True]


def test_the_random_model_runs_whole(tasks: Path) -> None:
    engine = tiny.engine(max_sequences=8)
    lm = MemTrainLM(engine, recipe_of(chunk_tokens=400, memory_tokens=8, answer_tokens=8))
    found = run(lm, tasks, "local_say", "local_choose", limit=2)
    assert not lm.failures
    for sample in found["samples"]["local_choose"]:
        assert all(IMPOSSIBLE < reply[0][0] < 0 for reply in sample["resps"])
    assert all(set(told) == {"question", "chunks", "memory"} for told in lm.told.values())
    assert len(lm.told) == 4


# ---- what a request asks for ----------------------------------------------------------------------------------------


def test_the_answer_obeys_the_request() -> None:
    tokenizer = tiny.tokenizer()
    assert final_answer("so \\boxed{ Paris } it is", [], 50, tokenizer) == "Paris"
    assert final_answer("\nParis\nFrance", ["\n"], 50, tokenizer) == "Paris"
    assert final_answer("\\boxed{Paris. France}", ["", ".", "x"], 50, tokenizer) == "Paris"
    long = "The quick brown fox jumps over the lazy dog"
    cut = final_answer(long, [], 3, tokenizer)
    assert long.startswith(cut)
    assert len(tokenizer.encode(cut, add_special_tokens=False)) <= 3


@pytest.mark.parametrize(
    ("given", "temperature", "tokens"),
    [
        ({"max_gen_toks": 3, "do_sample": False, "temperature": 1.0}, 0.0, 24),  # answer_tokens: room for the box
        ({"max_gen_toks": 90, "do_sample": True, "temperature": 0.3, "top_p": 0.5}, 0.3, 90),
        ({"max_tokens": 40, "temperature": 0.7}, 0.7, 40),
        ({"until": "\n"}, 0.0, 256),
    ],
)
def test_generation_settings_reach_the_engine(given: dict[str, Any], temperature: float, tokens: int) -> None:
    lm = agent()
    lm.generate_until([request("generate_until", f"{FILLER * 9}\n\nQuestion: Which house has Anna?", given)])
    engine: Any = lm.engine
    *writes, reply = [params for _, params, _ in engine.sampled]
    assert {params.temperature for params in writes} == {lm.recipe.eval.temperature}
    assert (reply.temperature, reply.top_p) == (temperature, given.get("top_p", 1.0))
    assert tokens <= reply.max_tokens <= tokens + 16  # the box and the end token


def test_a_window_too_small_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="question_tokens"):
        MemTrainLM(ScriptedEngine(tiny.tokenizer(), reads, 2000), recipe_of(), SplitRule(1900, 0))


def test_perplexity_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="perplexity"):
        agent().loglikelihood_rolling([request("loglikelihood_rolling", "text")])


def test_a_chat_history_is_plain_text() -> None:
    lm = agent()
    assert lm.apply_chat_template([{"role": "system", "content": "A"}, {"role": "user", "content": "B"}]) == "A\n\nB"
    assert lm.tokenizer_name.startswith("memtrain-")


# ---- failures and caches --------------------------------------------------------------------------------------------


def test_a_failed_request_is_wrong_and_ends_nothing(tasks: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(prompt: str, number: int) -> str:
        if "Bruno" in prompt or "Anna" in prompt:  # Bruno's house is the first choice, which lm-eval takes for chosen
            raise RuntimeError("out of memory\nmore")
        return reads(prompt, number)

    lm = agent(fails)
    with caplog.at_level(logging.WARNING):
        found = run(lm, tasks, "local_say", "local_choose")
    assert sorted(lm.failures) == [(task, n) for task in ("local_choose", "local_say") for n in (0, 1)]
    assert set(lm.failures.values()) == {"out of memory"}
    assert "local_say, document 0: out of memory" in caplog.text
    assert found["samples"]["local_say"][0]["resps"] == [[""]]
    assert found["results"]["local_choose"]["acc,none"] == 0.75
    lines = lm_eval_run.scores_of(found, lm.failures, 100, 0)
    assert {line["task"]: (line["score"]["mean"], line["failed"]) for line in lines} == {
        "local_say": (0.5, 2),
        "local_choose": (0.5, 2),
    }


def test_lm_evals_own_cache_is_fed_and_used(tmp_path: Path) -> None:
    pytest.importorskip("sqlitedict")
    asked = [request("generate_until", f"{FILLER}\n\nQuestion: Which house has {n}?", {"until": []}) for n in PEOPLE]
    lm = agent()
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    first = cached.generate_until(asked)
    assert lm.cache_hook.dbdict is not None
    assert len(lm.cache_hook.dbdict) == len(asked)
    again = agent(lambda *_: pytest.fail("asked again"))
    assert CachingLM(again, str(tmp_path / "cache.db")).generate_until(asked) == first


def test_ruler_marks_other_lengths_and_groups_stand_alone() -> None:
    samples = [{"filter": "none", "metrics": ["4096", "8192"], "doc_id": n, "4096": -1.0, "8192": n} for n in (0, 1)]
    found = {
        "samples": {"ruler_x": samples},
        "results": {"ruler_x": {"4096,none": -1, "8192,none": 0.5}},
        "groups": {"ruler": {"8192,none": 0.5, "8192_stderr,none": "N/A", "4096,none": -1, "alias": "ruler"}},
    }
    lines = lm_eval_run.scores_of(found, {}, 100, 0)
    assert [(line["task"], line["metric"], line["score"]["mean"]) for line in lines] == [
        ("ruler_x", "8192", 0.5),
        ("ruler", "8192", 0.5),
    ]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_from_a_task_file_to_a_table(tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        '[model]\ndtype = "float32"\ndevice = "cpu"\n[eval]\nbootstrap = 100\n'
        '[memory]\nchunk_tokens = 400\nmemory_tokens = 8\nanswer_tokens = 8\nstyle = "compact"\n'
    )
    asked: dict[str, Any] = {"model": str(tiny.model_folder("llama")), "include_path": tasks, "limit": 2}
    command(str(recipe), ("local_say", "local_choose"), out=tmp_path / "out", **asked)
    assert "local_choose" in capfd.readouterr().out
    result = json.loads((tmp_path / "out" / "lm-eval.json").read_text())
    assert [(line["task"], line["score"]["n"]) for line in result["scores"]] == [("local_say", 2), ("local_choose", 2)]
    assert result["failed"] == []
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(line["task"], line["document"]) for line in samples] == [
        (task, number) for task in ("local_say", "local_choose") for number in (0, 1)
    ]
    assert all(line["chunks"] > 1 and line["error"] is None for line in samples)
    assert (tmp_path / "out" / "lm-eval.md").read_text().count("\n| local_") == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metadata": "[4096]"}, "no JSON object"),
        ({"limit": 0}, "at least 1"),
        ({"include_path": Path("nowhere")}, "no folder"),
        ({"question_pattern": "("}, "no regular expression"),
    ],
)
def test_a_mistake_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        command("demo-cpu", ("local_say",), **changes)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_is_one_sentence_with_its_neighbours(tasks: Path) -> None:
    with pytest.raises(UserError, match="no task 'lcal_say': did you mean local_say") as caught:
        run(agent(), tasks, "lcal_say")
    assert "\n" not in str(caught.value)


def test_data_that_cannot_be_had_is_one_sentence(tasks: Path) -> None:
    (tasks / "stories.jsonl").unlink()
    with pytest.raises(UserError, match=r"cannot prepare local_say .*docs/lm-eval\.md") as caught:
        run(agent(), tasks, "local_say")
    assert "\n" not in str(caught.value)


def test_lm_evals_own_command_line_takes_the_model_by_name(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.registry import get_model

    memory = "memory.chunk_tokens=400,memory.memory_tokens=8,memory.answer_tokens=8,memory.style=compact"
    model = f"pretrained={tiny.model_folder('llama')},model.dtype=float32,model.device=cpu"
    line = f"recipe=demo-cpu,{model},question_tokens=64,{memory}"
    lm: Any = get_model("memtrain").create_from_arg_string(line, {"device": "cuda:0", "batch_size": 1})
    assert isinstance(lm, MemTrainLM)
    assert (lm.rule.question_tokens, lm.recipe.memory.chunk_tokens) == (64, 400)
    assert (lm.recipe.model.device, lm.recipe.model.dtype) == ("cpu", "float32")


# ---- the tasks that come with lm-eval -------------------------------------------------------------------------------

TASKS = Path(lm_eval.__file__).parent / "tasks"


@pytest.mark.slow
def test_ruler_runs_offline_on_what_the_agent_remembers() -> None:
    pytest.importorskip("wonderwords")
    pytest.importorskip("nltk")

    def keeps(prompt: str, _: int) -> str:
        kept = [line for line in prompt.splitlines() if line.startswith("One of the special magic")]
        number = kept[-1].split()[-1].rstrip(".") if kept else "?"
        return f"\\boxed{{{number}}}" if "boxed" in prompt else "\n".join(kept)

    recipe = recipe_of(chunk_tokens=600, memory_tokens=200)
    lm = MemTrainLM(ScriptedEngine(tiny.tokenizer(), keeps), recipe)
    folder = tiny.model_folder("llama")
    manager = TaskManager(
        include_path=str(TASKS / "ruler"),
        include_defaults=False,
        metadata={"tokenizer": str(folder)},  # type: ignore[dict-item]
    )
    found = lm_eval_run.evaluate(lm, ["niah_single_1"], manager, limit=3)
    [line] = lm_eval_run.scores_of(found, lm.failures, 100, 0)
    assert (line["metric"], line["score"]["mean"], line["score"]["n"]) == ("4096", 1.0, 3)
    assert min(told["chunks"] for told in lm.told.values()) >= 5
    assert all(told["question"].count("special magic number") >= 2 for told in lm.told.values())


def templates() -> list[tuple[str, str]]:
    """``doc_to_text`` of the tasks that have one as a template: LongBench (1 and 2), BABILong, InfiniteBench."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda *_: None)
    found = []
    for folder in ("longbench", "longbench2", "babilong", "infinitebench"):
        common = TASKS / folder / "_longbench_common_yaml"
        shared = yaml.load(common.read_text(), Loader) if common.exists() else {}
        for file in sorted((TASKS / folder).glob("[!_]*.yaml")):
            config = {**shared, **yaml.load(file.read_text(), Loader)}
            if "task" in config and isinstance(config.get("doc_to_text"), str):
                found.append((config["task"], (config.get("description") or "") + config["doc_to_text"]))
    return found


NO_QUESTION = ("longbench_lcc", "longbench_repobench-p")
"""Code to go on with: what is asked for is the text's next line."""


def test_every_template_of_the_long_tasks_is_cut_rightly() -> None:
    from lm_eval.utils import apply_template

    text, question = "\n\n".join(f"({n:02}) {FILLER * 3}".strip() for n in range(40)), "Who came to the old mill?"
    labels = {"longbench_trec": "Type:", "longbench_triviaqa": "Answer:", "longbench_lsht": "类别："}
    labels["longbench_samsum"] = "Summary:"
    checked = 0
    for name, template in templates():
        plain = name.removesuffix("_e")
        asked = question
        if plain in labels:  # few-shot tasks bring the heads inside the question
            head = "Dialogue" if "samsum" in name else "Question"
            asked = f"{head}: {question}\n{labels[plain]}"
        choices = ["red", "green", "blue", "grey"]
        document = {"context": text, "input": question, "question": asked, "choices": choices}
        if "babilong" in name:
            document["input"] = text
        if plain in NO_QUESTION:
            continue
        split = split_prompt(apply_template(template, document), lambda part: len(part.split()), SplitRule())
        middle = text.split("\n\n")[1:-1]
        assert all(part in split.text and part not in split.question for part in middle), name
        if "{{question" in template or "{{input}}" in template:
            assert question in split.question, name
            assert question not in split.text, name
        checked += 1
    assert checked >= 60


@pytest.mark.parametrize("name", ["code_run", "code_debug", "longbook_choice", "longdialogue", "math_find"])
def test_prompts_that_infinitebench_makes_by_code_are_cut_rightly(name: str) -> None:
    module = importlib.import_module("lm_eval.tasks.infinitebench.utils")
    text = "\n\n".join(f"({n:02}) {FILLER * 3}".strip() for n in range(40))
    asked = {"code_run": "What is func_7(-3)?", "math_find": "Only one number. The largest number of the list is:"}
    document = {"context": text, "input": asked.get(name, "Who came?"), "options": ["red", "green", "blue", "grey"]}
    prompt = getattr(module, f"doc_to_text_{name}")(document)
    split = split_prompt(prompt, lambda part: len(part.split()), SplitRule())
    parts = text.split("\n\n")
    assert all(part in split.text and part not in split.question for part in parts)
    shown = {"code_run": "func_7(-3)", "longdialogue": "Which character", "math_find": "largest number of the list"}
    expected = [shown.get(name, "green"), *(["Who came?"] if name == "longbook_choice" else [])]
    assert all(part in split.question and part not in split.text for part in expected)
