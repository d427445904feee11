"""Evaluation of the proxy tasks with an engine whose every answer can be worked out by hand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.corpus.masking import count_occurrences
from memtrain.errors import UserError
from memtrain.evaluation import metrics
from memtrain.evaluation.proxy import CONTROL_PROBES, EvalResult, eval_probes, evaluate
from memtrain.memory.prompts import NO_MEMORY
from memtrain.recipe import Recipe, parse_recipe
from memtrain.types import Completion, Mention, SamplingParams, TrainingDocument, Trajectory, Turn

NAMES = ("Anna", "Boris", "Clara", "Dmitri", "Elena", "Fyodor", "Galina", "Heinrich")


class Characters:
    """A tokenizer with one token a character; id 0 ends a text."""

    chat_template = None
    eos_token_id = 0
    all_special_tokens: tuple[str, ...] = ()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, token_ids: Any, **_: Any) -> str:
        return "".join(chr(token) for token in token_ids if token)

    def __call__(self, text: str, **_: Any) -> dict[str, list[Any]]:
        return {"input_ids": self.encode(text), "offset_mapping": [(i, i + 1) for i in range(len(text))]}


class Clerk:
    """An engine that knows nothing but its prompt.

    Asked to write, it notes the capitalised names it sees (when ``keeps``); asked for an answer, it boxes
    ``guess``. A completion has log-prob -1 a token where its boxed answer stands in the prompt, else -2.
    """

    def __init__(self, keeps: bool, guess: str = "Anna", window: int = 10**6) -> None:
        self.tokenizer, self.context_tokens = Characters(), window
        self.keeps, self.guess = keeps, guess
        self.samples: list[tuple[str, SamplingParams, int]] = []
        self.scores: list[str] = []
        self.together = self.most_together = 0

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        prompt = self.tokenizer.decode(prompt_ids)
        self.samples.append((prompt, params, n))
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await asyncio.sleep(0)
        self.together -= 1
        if "Rewrite the notes" in prompt:
            seen = dict.fromkeys(re.findall("|".join(NAMES), prompt))
            text = " ".join(seen) if self.keeps else "nothing"
        else:
            text = f"\\boxed{{{self.guess}}}"
        ids = self.tokenizer.encode(text)[: params.max_tokens]
        reason = "length" if len(ids) < len(text) else "stop"
        return [Completion(tuple(ids), (-1.0,) * len(ids), reason)] * n

    async def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], weights: str = "policy"
    ) -> list[float]:
        prompt, target = self.tokenizer.decode(prompt_ids), self.tokenizer.decode(completion_ids)
        self.scores.append(prompt)
        found = re.search(r"\\boxed\{(.*)\}", target)
        assert found
        return [-1.0 if found[1] in prompt else -2.0] * len(completion_ids)


def document(number: int = 0) -> TrainingDocument:
    """Three passages of fifty characters, each with two names of its own; Heinrich is hidden."""
    lines = [
        f"{NAMES[2 * i]} met [MASK] and wrote to {NAMES[2 * i + 1]} in the spring.".ljust(59) + "\n" for i in range(3)
    ]
    return TrainingDocument(
        id=f"held_out-{number}", text="".join(lines), answer="Heinrich", answer_kind="name", aliases=(), pivot_id="p#0",
        passage_ids=("p#0",), seed=number, n_masks=3, n_tokens=180, mentions=tuple(Mention(name) for name in NAMES[:6]),
    )  # fmt: skip


def recipe(**eval_settings: Any) -> Recipe:
    return parse_recipe(
        {
            "seed": 7,
            "memory": {
                "chunk_tokens": 60,
                "max_chunks": 3,
                "memory_tokens": 30,
                "answer_tokens": 40,
                "style": "compact",
            },
            "eval": {"documents": 2, "probes": 3, "samples": 2, "bootstrap": 100, "temperature": 0, **eval_settings},
        },
        "test",
    )


def run(engine: Clerk, settings: Recipe, label: str = "before", n: int = 2) -> EvalResult:
    return asyncio.run(evaluate(engine, [document(i) for i in range(n)], settings, label))  # type: ignore[arg-type]


def test_every_metric_by_hand() -> None:
    engine = Clerk(keeps=True)
    means = {name: value["mean"] for name, value in run(engine, recipe()).summary().items()}
    # Memories: "Anna Boris" (10), "Clara Dmitri Anna Boris" (23), then 36 characters cut to 30:
    # "Elena Fyodor Clara Dmitri Anna" keeps five of six names and both of the last chunk.
    assert means["entities_kept"] == pytest.approx(5 / 6)
    assert means["entities_kept_last_chunk"] == 1
    assert means["memory_tokens"] == pytest.approx((10 + 23 + 30) / 3)
    assert means["truncated"] == pytest.approx(1 / 3)
    # "Heinrich" never stands in the text, so a memory cannot help: 8 letters and the brace at -2.
    assert means["reconstruction_logprob"] == means["closed_book_logprob"] == -18
    assert means["reconstruction_likelihood_gain"] == 0
    assert means["reconstruction_em"] == means["closed_book_em"] == means["full_context_em"] == 0
    assert means["recall_logprob"] - means["closed_book_recall_logprob"] == pytest.approx(
        means["recall_likelihood_gain"]
    )


def test_recall_rows_name_their_probe_and_distance() -> None:
    result = run(Clerk(keeps=True), recipe())
    rows = [record for record in result.records if record["kind"] == "recall"]
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        gain = len(row["gold"]) + 1
        lost = row["step"] == 3 and row["gold"] == "Boris"  # cut off at the limit
        assert row["recall_likelihood_gain"] == (0 if lost else gain)
        assert row["recall_em"] == float(row["gold"] == "Anna")
        assert row[f"recall_likelihood_gain_distance_{row['distance']}"] == row["recall_likelihood_gain"]
        assert row["distance"] == row["step"] - 1 - row["chunk"]
    assert {row["distance"] for row in rows} == {0, 1, 2}  # as many probes as distances: each is asked


def test_a_memory_that_keeps_is_better_than_one_that_does_not() -> None:
    before, after = run(Clerk(keeps=False), recipe()), run(Clerk(keeps=True), recipe(), "after")
    difference = after.difference(before)
    assert difference["recall_likelihood_gain"]["ci95"][0] > 0
    assert difference["entities_kept"]["mean"] == pytest.approx(5 / 6)
    assert difference["closed_book_recall_logprob"] == {"mean": 0, "ci95": [0, 0], "n": 2}
    assert before.summary()["recall_likelihood_gain"]["mean"] == 0


def test_probes_are_the_same_before_and_after_and_change_with_the_seed() -> None:
    chunks = [document().text[start : start + 60] for start in (0, 60, 120)]
    assert eval_probes(document(), chunks, 5, 7) == eval_probes(document(), chunks, 5, 7)
    draws = {tuple(eval_probes(document(), chunks, 3, seed)) for seed in range(10)}
    assert len(draws) > 5
    answers = {probe.answer for seed in range(20) for probe in eval_probes(document(), chunks, 3, seed)}
    assert answers == set(NAMES[:6])


def test_exact_match_counts_the_hidden_entity() -> None:
    means = {name: value["mean"] for name, value in run(Clerk(True, guess="heinrich"), recipe()).summary().items()}
    assert means["reconstruction_em"] == means["reconstruction_f1"] == 1
    assert means["closed_book_em"] == means["full_context_em"] == 1
    assert means["recall_em"] == 0


def test_full_context_only_where_it_fits() -> None:
    narrow = run(Clerk(keeps=True, window=200), recipe()).summary()
    assert "full_context_em" not in narrow
    assert narrow["closed_book_em"]["n"] == 2
    engine = Clerk(keeps=True)
    assert run(engine, recipe(full_context=False)).summary().keys() == narrow.keys()


def test_controls_see_no_text_and_no_memory() -> None:
    engine = Clerk(keeps=True)
    run(engine, recipe(full_context=False))
    closed = [prompt for prompt, _, n in engine.samples if n == 2]
    assert len(closed) == 2 + 2 * CONTROL_PROBES  # one a document, some of its three probes, each sampled twice
    assert all(NO_MEMORY in prompt for prompt in closed)
    assert not any("spring" in prompt and "[TARGET]" not in prompt for prompt in closed)


def test_a_probe_is_scored_once_without_memory() -> None:
    engine = Clerk(keeps=True)
    run(engine, recipe())
    without = [prompt for prompt in engine.scores if NO_MEMORY in prompt]
    assert len(without) == 2 * (1 + 3)


def test_episodes_run_together() -> None:
    engine = Clerk(keeps=True)
    run(engine, recipe())
    assert engine.most_together >= 2 * 2


def test_sampling_settings_reach_the_engine() -> None:
    engine = Clerk(keeps=True)
    run(engine, recipe(temperature=0.5))
    assert {params.temperature for _, params, _ in engine.samples} == {0.5}
    assert {params.max_tokens for _, params, _ in engine.samples} == {30, 40}


def test_progress_counts_readings() -> None:
    calls: list[tuple[str, int, int]] = []
    documents = [document(i) for i in range(2)]
    engine: Any = Clerk(keeps=True)
    asyncio.run(evaluate(engine, documents, recipe(), "before", lambda *call: calls.append(call)))
    assert calls == [("evaluation", done, 4) for done in range(1, 5)]


def test_no_more_documents_than_asked_for() -> None:
    result = run(Clerk(keeps=True), recipe(), n=5)
    assert {record["document"] for record in result.records} == {"held_out-0", "held_out-1"}
    assert result.notes == {"documents": 2, "documents_asked_for": 2, "samples": 2}


def test_nothing_to_evaluate_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="held-out"):
        run(Clerk(keeps=True), recipe(), n=0)


def test_a_document_without_mentions_has_no_probes_and_says_so_by_n() -> None:
    bare = [TrainingDocument(**{**vars(document(i)), "mentions": () if i else document().mentions}) for i in range(2)]
    engine: Any = Clerk(keeps=True)
    summary = asyncio.run(evaluate(engine, bare, recipe(), "before")).summary()
    assert summary["recall_em"]["n"] == summary["entities_kept"]["n"] == 1
    assert summary["reconstruction_em"]["n"] == 2


def test_an_engine_error_goes_through() -> None:
    class Broken(Clerk):
        async def score(self, *_: Any, **__: Any) -> list[float]:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(Broken(keeps=True), recipe())


def test_saved_results_come_back_whole(tmp_path: Path) -> None:
    result = run(Clerk(keeps=True), recipe())
    result.save(tmp_path / "before.json")
    assert EvalResult.load(tmp_path / "before.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["before.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "label": "x", "sneaky": 1}']
)
def test_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "before.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"before\.json"):
        EvalResult.load(path)


def test_missing_result_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memtrain eval"):
        EvalResult.load(tmp_path / "none.json")


def test_entities_are_found_as_whole_words_in_any_case() -> None:
    assert metrics.share_kept("ANNA saw Boris's cat and _Clara_", ["Anna", "Boris", "Clara", "Dmitri"]) == 0.75
    assert metrics.share_kept("Annabel", ["Anna"]) == 0
    assert metrics.share_kept("It cost $5 million, 40% more, in the U.S.", ["$5 million", "40%", "U.S."]) == 1
    assert metrics.share_kept("anything", []) is None


def test_entities_of_chunks_not_read_are_not_asked_for() -> None:
    turn = Turn("write", 1, (1,), (1, 2), (-1.0, -1.0), "Anna")
    trajectory = Trajectory("d", 0, (turn,), (NO_MEMORY, "Anna"))
    assert metrics.reading_metrics(trajectory, [["Anna", "Boris"], ["Clara"]])["entities_kept"] == 0.5


def test_order_of_metric_names() -> None:
    names = ["truncated", "recall_em_distance_10", "recall_em_distance_2", "recall_em", "zeta", "recall_logprob"]
    assert metrics.ordered(names) == [
        "recall_logprob", "recall_em", "recall_em_distance_2", "recall_em_distance_10", "truncated", "zeta",
    ]  # fmt: skip
    assert metrics.split_name("recall_em_distance_10") == ("recall_em", 10)


PIECES = ["Anna", "Ann", "U.S.", "$5", "40%", " ", "\n", "東京", "é", "e\u0301", "-", "x", "New York", "York"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_surfaces_of_a_chunk_are_those_that_masking_would_replace(chunk: str) -> None:
    names = [piece for piece in PIECES if piece.strip() and piece != "-"]
    found = metrics.surfaces_by_chunk([chunk], [Mention(name) for name in names])
    assert found == [[name for name in names if count_occurrences(chunk, name)]]
