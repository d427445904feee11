"""Recipes: overlays, overrides, published values, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from memtrain.errors import UserError
from memtrain.recipe import Recipe, builtin_recipes, load_recipe, parse_recipe


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_load_and_begin_with_a_comment(name: str) -> None:
    assert load_recipe(name).name
    text = (Path(__file__).parents[1] / "src" / "memtrain" / "recipes" / f"{name}.toml").read_text()
    assert text.startswith("# ")


def test_the_paper_recipe_holds_every_published_value() -> None:
    recipe = load_recipe("paper-qwen3-4b")
    train, tasks, memory, documents = recipe.train, recipe.tasks, recipe.memory, recipe.documents
    assert (train.documents_per_step, train.group_size, tasks.recall_samples, tasks.recall_weight) == (32, 8, 8, 0.5)
    assert (train.steps, train.lr, train.warmup_steps, train.weight_decay, train.grad_clip) == (
        300,
        1e-6,
        20,
        0.01,
        1.0,
    )
    assert (train.clip_low, train.clip_high, train.kl_coef, train.temperature, train.top_p) == (0.2, 0.2, 1e-3, 1, 1)
    assert (memory.chunk_tokens, memory.max_chunks, memory.memory_tokens, memory.answer_tokens) == (5000, 8, 1024, 1024)
    assert (documents.related, documents.random, documents.train) == (29, 120, 30_000)
    assert (recipe.entities.max_occurrences, recipe.entities.max_words) == (4, 7)  # fewer than 5, fewer than 8
    assert (tasks.reconstruction_reward, tasks.recall_reward, tasks.mode, tasks.probes) == ("exact", "exact", "full", 1)
    assert not train.std_normalise
    assert not tasks.paired_probes
    assert recipe.priming.steps == 0
    qa = recipe.qa
    assert (qa.train.steps, qa.train.documents_per_step, qa.train.mini_batches, qa.train.lr) == (500, 32, 4, 1e-6)
    assert (qa.reward, qa.train_tokens, max(qa.lengths), qa.number) == ("exact", 28_000, 896_000, 128)
    search = load_recipe("paper-search-qa")
    assert (search.qa.train.steps, search.qa.train.lr) == (200, 5e-7)
    assert (search.search.max_turns, search.search.topk, search.search.questions_at_once) == (6, 3, 2)
    assert (search.search.turn_tokens, search.search.result_tokens, search.search.probes) == (1024, 1024, 0)
    seven = load_recipe("paper-qwen2.5-7b")
    assert seven.model.name == "Qwen/Qwen2.5-7B-Instruct"
    assert seven.model_copy(update={"name": recipe.name, "model": recipe.model}) == recipe


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if name.startswith("ablation")])
def test_an_ablation_changes_one_section_of_its_base(name: str) -> None:
    base, ablation = load_recipe("paper-qwen3-4b").model_dump(), load_recipe(name).model_dump()
    assert len([key for key in base if key != "name" and base[key] != ablation[key]]) == 1


def test_one_line_chooses_model_and_corpus(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "demo-cpu"\nmodel = "Qwen/Qwen3-4B-Instruct-2507"\ncorpus = "hf:wikimedia/wikipedia"\n')
    recipe = load_recipe(str(file))
    assert recipe.model.name == "Qwen/Qwen3-4B-Instruct-2507"
    assert recipe.corpus.source == "hf:wikimedia/wikipedia"
    assert recipe.corpus.max_chars == load_recipe("demo-cpu").corpus.max_chars  # the rest of the table stays


def test_overrides_come_last_and_know_types() -> None:
    recipe = load_recipe("demo-cpu", ["train.lr=1e-5", "model=other", "train.std_normalise=false", "corpus=a.xml.bz2"])
    assert (recipe.train.lr, recipe.model.name, recipe.train.std_normalise) == (1e-5, "other", False)
    assert recipe.corpus.source == "a.xml.bz2"


def test_overlays_stack_and_a_cycle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"\ntrain.steps = 3\n')
    (tmp_path / "b.toml").write_text('base = "demo-cpu"\ntrain.steps = 2\ntrain.group_size = 5\n')
    recipe = load_recipe(str(tmp_path / "a.toml"))
    assert (recipe.train.steps, recipe.train.group_size) == (3, 5)
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(UserError, match="cycle"):
        load_recipe(str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"trian": {}}, "unknown key 'trian': did you mean 'train'"),
        ({"train": {"stpes": 3}}, "unknown key 'train.stpes': did you mean 'steps'"),
        ({"train": {"qqqqqq": 3}}, "unknown key 'train.qqqqqq': remove it"),
        ({"memory": {"chunk_tokens": -4}}, "'memory.chunk_tokens' is -4: input should be greater"),
        ({"tasks": {"mode": "both"}}, "'tasks.mode' is 'both'"),
        ({"train": {"steps": "many"}}, "'train.steps' is 'many'"),
        ({"train": {"old_logprobs": "sampler", "top_p": 0.9}}, "key 'train': old_logprobs"),
        ({"train": 3}, "key 'train'"),
        ({"train": {"old_logprobs": "sampler", "importance_sampling_cap": 2.0}}, "importance_sampling_cap = 0"),
        ({"train": {"importance_sampling_cap": -1.0}}, "'train.importance_sampling_cap"),
        ({"sampler": {"kind": "vllm-server"}}, "key 'sampler': kind = \"vllm-server\" needs url"),
        ({"sampler": {"kind": "sglang"}}, "'sampler.kind' is 'sglang'"),
    ],
)
def test_mistakes_name_file_key_and_remedy(data: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(data, "mine.toml")
    assert says in str(error.value)
    assert "mine.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_broken_and_unknown_files(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("x = [")
    for source, says in [
        (str(tmp_path / "broken.toml"), "not valid TOML"),
        (str(tmp_path / "none.toml"), "not a file"),
        ("no-such-recipe", "built-in recipes"),
    ]:
        with pytest.raises(UserError, match=says):
            load_recipe(source)
    with pytest.raises(UserError, match=r"section\.key=value"):
        load_recipe("demo-cpu", ["train.steps"])


def test_the_fingerprint_tells_settings_apart() -> None:
    assert Recipe().fingerprint() == Recipe().fingerprint()
    assert Recipe().fingerprint() != Recipe(seed=1).fingerprint()


@pytest.mark.parametrize(
    ("sampler", "train", "cap"),
    [
        ({}, {}, 0.0),
        ({"kind": "vllm"}, {}, 2.0),
        ({"kind": "vllm-server", "url": "http://127.0.0.1:8000"}, {}, 2.0),
        ({"kind": "vllm"}, {"old_logprobs": "sampler"}, 0.0),
        ({"kind": "vllm"}, {"importance_sampling_cap": 0}, 0.0),
        ({"kind": "vllm"}, {"importance_sampling_cap": 3.5}, 3.5),
        ({}, {"importance_sampling_cap": 2.0}, 2.0),
    ],
)
def test_the_sampler_is_corrected_for_where_it_is_not_the_policy(
    sampler: dict[str, str], train: dict[str, object], cap: float
) -> None:
    recipe = parse_recipe({"sampler": sampler, "train": train}, "mine.toml")
    assert recipe.importance_sampling_cap == cap
