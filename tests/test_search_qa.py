"""Search QA from questions to rows and tables: a scripted engine, a tiny model, servers that fail half-way."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine
from search_servers import PASSAGES, Exchange, our_server, server_that, small_index

from memtrain.commands.search import search_qa as search_qa_command
from memtrain.commands.search import search_server as search_server_command
from memtrain.errors import UserError
from memtrain.evaluation.search_qa import CLOSED, ONE_SEARCH, SEARCHER, evaluate, failed_share, summary
from memtrain.memory.prompts import Prompts
from memtrain.qa.questions import Question
from memtrain.recipe import Recipe, parse_recipe
from memtrain.rl.advantages import group_advantages
from memtrain.rl.checkpoint import RunFolder
from memtrain.rl.experience import Experience
from memtrain.rl.search_experience import collector, search_reward
from memtrain.rl.trainer import Trainer
from memtrain.search.base import Retriever
from memtrain.search.breaker import Patience
from memtrain.search.client import HttpRetriever
from memtrain.search_qa import retriever_of, tasks_of
from memtrain.tasks.search_qa import SearchTask, separate
from memtrain.types import TARGET_TOKEN

RIVER = "Which river does the Bridge of Arta cross?"
LEADER = "Who led the masons of the bridge?"
TASK = SearchTask("q1+q2", (RIVER, LEADER), (("Arachthos", "Arachthos River"), ("Markos",)))


def recipe_of(**tables: Any) -> Recipe:
    data: dict[str, dict[str, Any]] = {
        "memory": {"chunk_tokens": 96, "memory_tokens": 24, "answer_tokens": 16, "style": "compact"},
        "search": {"turn_tokens": 160, "result_tokens": 400, "memory_tokens": 120, "max_turns": 4},
        "train": {"documents_per_step": 1, "group_size": 4, "steps": 2, "lr": 1e-3, "warmup_steps": 0, "kl_coef": 0.0},
        "eval": {"bootstrap": 100, "temperature": 0.0},
        "log": {"samples": 1, "checkpoint_every": 1},
    }
    for name, values in tables.items():
        data[name] = {**data.get(name, {}), **values}
    return parse_recipe({"name": "search", "seed": 4, **data}, "test")


def diligent(prompt: str, _: int) -> str:
    """Searches for the river, then for the leader, noting what it sees; answers with what it knows."""
    notes = [name for name in ("Arachthos", "Markos led") if name in prompt]
    if "<search>" not in prompt:  # the last turn, and the controls
        return "\\boxed{" + "; ".join("Arachthos" if n == "Arachthos" else "Markos" for n in notes) + "}"
    memory = ". ".join(notes)
    if "Arachthos" not in prompt:
        return f"{memory} <search>Bridge of Arta river</search>"
    return "\\boxed{Arachthos; Markos}" if len(notes) == 2 else f"{memory} <search>led the masons</search>"


# ---- tasks and rewards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "n", "wanted"),
    [
        ("\\boxed{a; b}", 2, ["a", "b"]),
        ("\\boxed{a}", 2, ["a", ""]),
        ("\\boxed{; b}", 2, ["", "b"]),
        ("\\boxed{a; b; c}", 2, ["a", "b"]),
        ("first \\boxed{a}, then \\boxed{b}", 2, ["a", "b"]),
        ("draft \\boxed{x}, no: \\boxed{a; b}", 2, ["a", "b"]),
        ("\\boxed{a; b}", 1, ["a; b"]),
        ("\\boxed{x} or \\boxed{a}", 1, ["a"]),
        ("none", 3, ["", "", ""]),
        ("", 1, [""]),
    ],
)
def test_answers_are_told_apart(reply: str, n: int, wanted: list[str]) -> None:
    assert separate(reply, n) == [f"\\boxed{{{one}}}" if one else "" for one in wanted]


ANSWER = st.text(st.characters(codec="utf-8", exclude_characters=";{}\\"), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(ANSWER, min_size=1, max_size=5), st.data())
@settings(deadline=None)
def test_the_reward_is_the_share_of_right_answers(golds: list[str], data: st.DataObject) -> None:
    task = SearchTask("t", tuple("q" for _ in golds), tuple((gold,) for gold in golds))
    right = data.draw(st.lists(st.booleans(), min_size=len(golds), max_size=len(golds)))
    said = [gold if ok else f"{gold} x" for gold, ok in zip(golds, right, strict=True)]
    assert search_reward("exact", f"m \\boxed{{{'; '.join(said)}}}", task) == pytest.approx(sum(right) / len(golds))
    assert search_reward("exact", f"\\boxed{{{task.answer}}}", task) == 1.0
    assert search_reward("f1", "no box", task) == 0.0


def questions(*answers: tuple[str, ...]) -> list[Question]:
    return [Question(f"h/{i}", f"question {i}?", spellings) for i, spellings in enumerate(answers)]


def test_tasks_of_several_questions() -> None:
    asked = questions(("a",), ("b",), ("c; d",), ("e; f", "g"), ("h",))
    tasks = tasks_of(asked, recipe_of(), 0)
    assert len(tasks) == 2  # of 4 that can be answered
    assert all(len(task.questions) == 2 and "/" not in task.id for task in tasks)
    assert not any(";" in spelling for task in tasks for answers in task.answers for spelling in answers)
    assert tasks == tasks_of(asked, recipe_of(), 0)
    assert len({tuple(task.id for task in tasks_of(asked, recipe_of(), seed)) for seed in range(9)}) > 1
    single = tasks_of(asked, recipe_of(search={"questions_at_once": 1}), 0)
    assert {task.answer for task in single} == {"a", "b", "c; d", "e; f", "h"}
    with pytest.raises(UserError, match=r"search\.questions_at_once"):
        tasks_of(asked[:1], recipe_of(), 0)
    with pytest.raises(ValueError):
        SearchTask("a/b", ("q",), (("a",),))
    with pytest.raises(ValueError):
        SearchTask("a", ("q",), ((),))


# ---- a step's experience --------------------------------------------------------------------------------------------


def collect(
    reply: Callable[[str, int], str], recipe: Recipe, retriever: Retriever | None = None
) -> tuple[Experience, ScriptedEngine]:
    engine = ScriptedEngine(tiny.tokenizer(), reply)
    work = collector(retriever or small_index())(engine, Prompts(engine.tokenizer, recipe.memory), [TASK], recipe, 1)
    return tiny.run(work), engine


def by_turns() -> Callable[[str, int], str]:
    """Members of a group that do as well as their place in it: the first searches twice, others less."""
    asked = [0]

    def reply(prompt: str, number: int) -> str:
        asked[0] += 1
        if asked[0] == 2:
            return "\\boxed{Arachthos; nobody}"
        if asked[0] == 3:
            return "no action at all"
        return diligent(prompt, number)

    return reply


def test_rows_hold_what_was_said_and_nothing_that_was_found() -> None:
    recipe = recipe_of()
    found, engine = collect(by_turns(), recipe)
    [episodes] = found.episodes
    assert sorted(episodes.rewards) == [0.5, 1.0, 1.0, 1.0]
    advantages = dict(zip(range(4), group_advantages(episodes.rewards) or (), strict=True))
    texts = [passage.text for passage in PASSAGES]
    decode = tiny.tokenizer().decode
    for row in found.rows:
        assert row.kind in ("search", "answer")
        assert row.advantage == advantages[int(row.trajectory_id.rpartition("/")[2])]
        assert not any(text in decode(row.completion_ids) for text in texts)
    assert any(text in decode(row.prompt_ids) for row in found.rows for text in texts)
    turns = sum(len(trajectory.turns) for trajectory in episodes.trajectories)
    assert len(found.rows) == turns == len(engine.sampled)
    metrics = found.metrics
    assert metrics["turns"] == turns / 4
    assert metrics["searches"] == sum(row.kind == "search" for row in found.rows) / 4 - 0.25  # one was lost
    assert metrics["lost_turns"] == 1 / turns
    assert metrics["answered"] == 1.0
    assert metrics["failed_searches"] == 0
    assert metrics["reward"] == pytest.approx(3.5 / 4)
    assert "recall_reward" not in metrics


def test_equal_rewards_teach_nothing() -> None:
    found, _ = collect(diligent, recipe_of())
    assert found.rows == []
    assert found.metrics["groups/e2e/dropped"] == 1


def test_likelihood_rewards_score_the_known_answers() -> None:
    """Those whose state holds the answers are paid; the last, forced answer is not sampled."""
    seen = [0]

    def half(prompt: str, number: int) -> str:
        seen[0] += 1
        return diligent(prompt, number) if seen[0] % 2 else "nothing <search>xylophone</search>"

    found, engine = collect(half, recipe_of(qa={"reward": "likelihood"}, train={"known_answer_samples": 2}))
    [episodes] = found.episodes
    assert max(episodes.rewards) > 0
    assert len(set(episodes.rewards)) > 1
    known = [row for row in found.rows if row.loss == "cross_entropy"]
    assert len(known) == 2
    assert all("\\boxed{Arachthos; Markos}" in tiny.tokenizer().decode(row.completion_ids) for row in known)
    assert all("<search>" in prompt for prompt, _, _ in engine.sampled)
    assert len(engine.scored) == 1 + 4  # once without anything, once a trajectory


@pytest.mark.parametrize("reward", ["exact", "likelihood"])
def test_probes_ask_later_memories_for_earlier_results(reward: str) -> None:
    def knows(prompt: str, number: int) -> str:
        return f"\\boxed{{Epirus}}{number}" if TARGET_TOKEN in prompt else by(prompt, number)

    by = by_turns()
    tables: dict[str, Any] = {
        "search": {"probes": 2},
        "tasks": {"recall_samples": 2, "recall_reward": reward, "recall_weight": 0.25, "mode": "end-to-end"},
    }
    found, engine = collect(knows, recipe_of(**tables))
    [episodes] = found.episodes
    assert found.metrics["probes"] > 0
    for trajectory, probes, recall in zip(episodes.trajectories, episodes.probes, episodes.recall, strict=True):
        assert len(recall) == len(probes)
        for probe in probes:
            assert 1 <= probe.step < len(trajectory.memories)
            assert TARGET_TOKEN in probe.masked_chunk
            assert probe.answer not in probe.masked_chunk
            assert probe.answer not in ("Arachthos", "Markos")  # never an answer of the task
            shown = tiny.tokenizer().decode(trajectory.turns[probe.chunk].prompt_ids)
            assert probe.masked_chunk.replace(TARGET_TOKEN, probe.answer) in shown
    for reward_, e2e, recall in zip(episodes.rewards, episodes.e2e, episodes.recall, strict=True):
        assert reward_ == pytest.approx(e2e + (0.25 * sum(recall) / len(recall) if recall else 0))
    asked = [prompt for prompt, _, _ in engine.sampled if TARGET_TOKEN in prompt]
    assert len(asked) == (found.metrics["probes"] and sum(map(len, episodes.probes)) if reward == "exact" else 0)
    alone, _ = collect(by_turns(), recipe_of(**{**tables, "tasks": {"mode": "decoupled", "recall_samples": 2}}))
    assert alone.episodes[0].rewards == tuple(alone.episodes[0].e2e)


def test_the_window_is_checked() -> None:
    engine = ScriptedEngine(tiny.tokenizer(), diligent, context_tokens=600)
    recipe = recipe_of()
    with pytest.raises(UserError, match=r"search\.turn_tokens"):
        tiny.run(collector(small_index())(engine, Prompts(engine.tokenizer, recipe.memory), [TASK], recipe, 1))


# ---- training -------------------------------------------------------------------------------------------------------


class Silent:
    """A watcher that looks away."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def metrics(self, step: int, values: dict[str, Any]) -> None: ...
    def sample(self, text: str, reward: float | None = None) -> None: ...


def trained(engine: Any, recipe: Recipe, retriever: Retriever, folder: Path, tasks: list[SearchTask]) -> RunFolder:
    run = RunFolder(folder)
    folder.mkdir()
    tiny.run(Trainer(engine, recipe, tasks, run, Silent(), collector=collector(retriever)).train())
    return run


def test_the_real_trainer_on_a_tiny_model(tmp_path: Path) -> None:
    """A random model writes and never searches; its memories still make its answers more or less likely."""
    engine = tiny.engine("llama")
    recipe = recipe_of(qa={"reward": "likelihood"}, search={"turn_tokens": 24, "max_turns": 3}, train={"group_size": 3})
    run = trained(engine, recipe, small_index(), tmp_path / "run", [TASK])
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["grad_norm"] > 0
        assert row["policy_tokens"] > 0
        assert row["cross_entropy"] > 0
        assert row["turns"] == 2
        assert row["sampler_gap"] < 1e-3
    assert run.latest() is not None
    assert len(list((run.path / "samples").iterdir())) == 2


def test_a_server_that_dies_in_training_stops_it_with_one_sentence(tmp_path: Path) -> None:
    engine = ScriptedEngine(tiny.tokenizer(), by_turns())
    patience = Patience(timeout=5, retries=1, pause=0.01, break_after=3, cooldown=30)
    recipe = recipe_of(train={"steps": 4})
    with server_that(Exchange.right) as peer:
        retriever = HttpRetriever(peer.url, patience)
        real = engine.update

        async def update(*arguments: Any) -> dict[str, float]:
            peer.die()
            return await real(*arguments)

        engine.update = update  # type: ignore[method-assign]
        with pytest.raises(UserError, match="of step 2 failed at") as error:
            trained(engine, recipe, retriever, tmp_path / "run", [TASK])
    assert peer.url in str(error.value)
    assert "search.max_failed_share" in str(error.value)
    latest = RunFolder(tmp_path / "run").latest()
    assert latest is not None
    assert latest.step == 1  # what was learnt before is kept
    tolerant = recipe_of(search={"max_failed_share": 1.0})
    found, _ = collect(by_turns(), tolerant, retriever)
    assert found.metrics["failed_searches"] == 1.0
    retriever.close()


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_and_its_controls() -> None:
    engine, ticks = ScriptedEngine(tiny.tokenizer(), diligent), list[int]()
    tasks = [TASK, SearchTask("q3+q4", ("Who?", "Where?"), (("Nobody",), ("Nowhere",)))]
    records = tiny.run(evaluate(engine, small_index(), tasks, recipe_of(), lambda: ticks.append(1)))
    assert len(ticks) == 2
    assert len(records) == 2 * 2 * 3
    found = summary(records, 100, 0)
    assert list(found) == [SEARCHER, ONE_SEARCH, CLOSED]
    assert found[SEARCHER][0]["exact"]["mean"] == 0.5
    assert found[SEARCHER][0]["exact"]["n"] == 2  # tasks, not questions
    assert found[ONE_SEARCH][0]["exact"]["mean"] == 0.5  # both questions name what they need
    assert found[CLOSED][0]["exact"]["mean"] == 0.0
    assert found[SEARCHER][0]["gain"]["mean"] > 0
    assert found[CLOSED][0]["gain"]["mean"] == 0
    assert failed_share(records) == 0
    mine = [record for record in records if record["kind"] == SEARCHER and record["document"] == TASK.id]
    assert [record["em"] for record in mine] == [1.0, 1.0]
    assert mine[0]["queries"] == ["Bridge of Arta river", "led the masons"]


def test_a_server_that_hangs_in_evaluation_is_counted() -> None:
    with server_that(Exchange.hang) as peer:
        retriever = HttpRetriever(peer.url, Patience(timeout=0.1, retries=1, pause=0.01, break_after=2, cooldown=30))
        engine = ScriptedEngine(tiny.tokenizer(), diligent)
        records = tiny.run(evaluate(engine, retriever, [TASK], recipe_of()))
        retriever.close()
    assert failed_share(records) == 1.0
    assert summary(records, 100, 0)[SEARCHER][0]["exact"]["mean"] == 0.0


# ---- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(
        f'[model]\nname = "{tiny.model_folder("llama")}"\ndtype = "float32"\ndevice = "cpu"\n'
        '[memory]\nchunk_tokens = 96\nmemory_tokens = 12\nanswer_tokens = 8\nstyle = "compact"\n'
        "[search]\nturn_tokens = 12\nmax_turns = 2\nresult_tokens = 64\nmemory_tokens = 12\ntimeout = 5\nretries = 0\n"
        "[eval]\nbootstrap = 100\n"
    )
    return file


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    records = [
        {
            "_id": f"h/{number}",
            "question": f"{RIVER} {number}",
            "answer": "Arachthos",
            "supporting_facts": [["Bridge of Arta", 0]],
            "context": [[passage.title, [passage.text]] for passage in PASSAGES],
        }
        for number in range(5)
    ]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(records))
    return file


def test_from_a_question_file_to_a_table(
    recipe: Path, question_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tyro.cli(search_qa_command, args=[str(recipe), str(question_file), "--number", "5", "--out", str(out)])
    shown = capfd.readouterr()
    assert "closed book" in shown.out
    assert "bm25 over 4 passages" in shown.out + shown.err
    result = json.loads((out / "search_qa.json").read_text())
    assert result["n"] == 2  # tasks of two questions
    assert set(result["summary"]) == {SEARCHER, ONE_SEARCH, CLOSED}
    assert len(result["records"]) == 2 * 2 * 3
    assert "| searcher | 2 |" in (out / "search_qa.md").read_text()
    with our_server() as url:
        command = [str(recipe), str(question_file), "--url", url, "--number", "2", "--out", str(out)]
        tyro.cli(search_qa_command, args=command)
    result = json.loads((out / "search_qa.json").read_text())
    assert result["retriever"] == f"{url}/retrieve"
    assert result["requests"]["searches"] == 2  # those of the control


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--url", "http://127.0.0.1:9"], "gives no search results"),
        (["--url", "127.0.0.1:9"], "must begin with http"),
        (["--number", "1"], "at least 2 questions"),
        (["--set", "search.turn_tokens=100000"], "search.turn_tokens"),
    ],
)
def test_a_mistake_is_one_sentence(
    recipe: Path, question_file: Path, tmp_path: Path, change: list[str], said: str
) -> None:
    command = [str(recipe), str(question_file), "--out", str(tmp_path / "out"), *change]
    with pytest.raises(UserError, match=said) as error:
        tyro.cli(search_qa_command, args=command)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_nothing_to_search(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "open.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"q{i}", "answer": ["a"]}) for i in range(4)))
    with pytest.raises(UserError, match="nothing to search"):
        tyro.cli(search_qa_command, args=[str(recipe), str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="nothing to search"):
        retriever_of(recipe_of(), [])


def test_the_server_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the point where it would wait for requests."""
    import socket

    import uvicorn

    file, index = tmp_path / "passages.json", tmp_path / "index"
    file.write_text(json.dumps([{"title": p.title, "text": p.text} for p in PASSAGES]))
    served: list[Any] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: served.append(sockets[0].getsockname()))
    tyro.cli(search_server_command, args=[str(file), "--index", str(index), "--port", "0"])
    tyro.cli(search_server_command, args=["--index", str(index), "--port", "0"])
    assert [host for host, _ in served] == ["127.0.0.1"] * 2
    with pytest.raises(UserError, match="nothing to search"):
        tyro.cli(search_server_command, args=["--port", "0"])
    with pytest.raises(UserError, match=r"search\.index"):
        tyro.cli(search_server_command, args=[str(file), "--kind", "bm26"])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another --port"):
        tyro.cli(search_server_command, args=[str(file), "--port", str(taken.getsockname()[1])])


def test_episodes_of_many_tasks_run_together() -> None:
    """The real batching, with searches in between: nothing waits for ever, every task is answered."""
    rng = random.Random(0)
    tasks = [SearchTask(f"t{i}", (f"question {rng.random()}",), (("a",),)) for i in range(6)]
    recipe = recipe_of(search={"turn_tokens": 8, "max_turns": 2, "questions_at_once": 1})
    with server_that(Exchange.right) as peer:
        retriever = HttpRetriever(peer.url)
        records = tiny.run(evaluate(tiny.engine("llama"), retriever, tasks, recipe))
        retriever.close()
        assert len(peer.seen) == 1  # the searches of all controls in one request
    assert len(records) == 18
