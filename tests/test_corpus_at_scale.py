"""Builds by many workers: the same documents, resumable, and one sentence where it does not go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repeated_dump import write_repeated
from small_wiki import write_wiki
from synthetic_corpus import check, recipe

from memtrain.assets import corpus_path
from memtrain.corpus import at_scale, documents, shard_store, steps
from memtrain.corpus.counting import default_counter, estimate_tokens
from memtrain.corpus.disk_passages import DiskCorpus
from memtrain.corpus.documents import build, load
from memtrain.corpus.steps import ParseStep
from memtrain.errors import UserError
from memtrain.recipe import Recipe

pytest.importorskip("datatrove")
pytest.importorskip("tantivy")
SMALL = {"workers": 2, "shard_bytes": 9_000}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "home"))
    return write_wiki(tmp_path / "wiki.xml.bz2", 120)


def settings(source: object, neighbours: str = "bm25", train: int = 70, **corpus: object) -> Recipe:
    return recipe(
        source,
        corpus={"min_chars": 40, **corpus},
        entities={"finder": "auto"},
        documents={"train": train, "neighbours": neighbours},
    )


def corpus_of(work: Path) -> DiskCorpus:
    (folder,) = work.glob("*/parse/corpus-0.3")
    return DiskCorpus(folder)


def test_workers_build_the_documents_that_one_process_builds(corpus: Path, tmp_path: Path) -> None:
    one = build(settings(corpus), tmp_path / "one")
    told: list[tuple[str, int, int]] = []
    two = build(settings(corpus), tmp_path / "two", progress=lambda *now: told.append(now), **SMALL)
    for split in ("train", "held_out"):
        assert load(tmp_path / "two", split) == load(tmp_path / "one", split)
    assert two.lines()[1:3] == one.lines()[1:3]
    size = corpus.stat().st_size
    assert ("reading bytes", size, size) in told
    assert {what for what, _, _ in told} >= {"joining shards", "documents, train"}
    # A finished build is the same build, whoever made it.
    assert build(settings(corpus), tmp_path / "two").reused
    assert build(settings(corpus), tmp_path / "one", **SMALL).reused


def test_documents_from_the_disk_keep_their_promises_whoever_draws_them(corpus: Path, tmp_path: Path) -> None:
    wanted = settings(corpus, "bm25-disk")
    two = build(wanted, tmp_path / "two", **SMALL)
    # In one process, with an index on the disk that goes away: the same.
    alone = build(wanted, tmp_path / "alone")
    disk = corpus_of(tmp_path / "two" / "work")
    passages = {passage.id: passage for passage in map(disk.passage, range(disk.rows))}
    for split, count in (("train", 70), ("held_out", 5)):
        drawn = load(tmp_path / "two", split)
        assert [document.id for document in drawn] == [f"{split}-{number}" for number in range(count)]
        assert drawn == load(tmp_path / "alone", split)
        for document in drawn:
            check(document, passages, size=6)
    assert two.splits["train"].drops == alone.splits["train"].drops
    assert not list((tmp_path / "two" / "work").glob("*/draw-*"))


@pytest.mark.slow
def test_a_large_corpus_takes_the_disk_by_itself(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_scale, "DISK_ABOVE", 100)
    monkeypatch.setattr(documents, "DISK_ABOVE", 100)
    build(settings(corpus), tmp_path / "large", **SMALL)
    build(settings(corpus, "bm25-disk"), tmp_path / "disk", workers=1, shard_bytes=20_000)
    assert load(tmp_path / "large", "train") == load(tmp_path / "disk", "train")
    assert build(settings(corpus), tmp_path / "large").reused  # a run asks for no workers, and takes what they built
    # A counter that workers cannot have is called here.
    custom = build(settings(corpus, "bm25-disk"), tmp_path / "custom", count_tokens=estimate_tokens, **SMALL)
    assert custom.tokenizer == "custom"
    assert [d.text for d in load(tmp_path / "custom", "train")] == [d.text for d in load(tmp_path / "disk", "train")]


def test_old_fingerprints_stay_valid() -> None:
    old = documents.build_fingerprint(settings("x"), "0" * 64, "estimate")
    assert old == documents.build_fingerprint(settings("x"), "0" * 64, "estimate", scaled=True)
    large = settings("x", max_passages=400_000)
    fingerprints = [documents.build_fingerprint(large, "0" * 64, "estimate", scaled) for scaled in (False, True)]
    assert fingerprints[0] != fingerprints[1]


def test_rules_and_plain_files_at_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "home"))
    text = "In {} Ada Lovelace met Konrad Zuse in Turin, where it cost them {} %."
    rows = ({"title": f"T{i}", "text": text.format(1700 + i, i)} for i in range(90))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = settings(tmp_path / "rows.jsonl", "bm25-disk", train=20)
    report = build(wanted, tmp_path / "out", **SMALL)
    assert report.finder == "rules"
    build(wanted, tmp_path / "alone")
    assert load(tmp_path / "out", "train") == load(tmp_path / "alone", "train")


def test_max_passages_spares_the_other_shards(corpus: Path, tmp_path: Path) -> None:
    wanted = settings(corpus, max_passages=60)
    build(wanted, tmp_path / "one")
    build(wanted, tmp_path / "two", workers=1, shard_bytes=6_000)
    assert load(tmp_path / "two", "train") == load(tmp_path / "one", "train")
    (shards,) = (tmp_path / "two" / "work").glob("*/parse/shards")
    (plan,) = (tmp_path / "two" / "work").glob("*/parse/plan.json")
    assert len(list(shards.glob("*.json"))) < len(json.loads(plan.read_text())["shards"]) / 2


def test_a_user_error_of_a_worker_is_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTRAIN_HOME", str(tmp_path / "home"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "long enough"}) + "\n")
    with pytest.raises(UserError, match=r"(?s)no column 'text'.*log\.txt.*same command"):
        build(settings(tmp_path / "rows.jsonl"), tmp_path / "out", **SMALL)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"workers": 2, "executor": "condor"}, "use local, slurm, ray"),
        ({"workers": 2, "executor_options": {"colour": "red"}}, "no option 'colour'"),
        ({"workers": 2, "executor": "slurm"}, "needs the option 'time'"),
    ],
)
def test_what_cannot_be_started_is_one_sentence(corpus: Path, tmp_path: Path, options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(settings(corpus), tmp_path / "out", **options)


def test_a_full_disk_is_told_by_the_step(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    plan = at_scale.make_plan(settings(corpus).corpus, 9_000)
    for name in ("shards", "counts"):
        (tmp_path / "parse" / name).mkdir(parents=True)
    plan.save(tmp_path / "parse" / "plan.json")
    monkeypatch.setattr(shard_store.json, "dump", full)
    with pytest.raises(OSError, match="No space"):
        ParseStep(str(tmp_path / "parse"), {"settings": settings(corpus).corpus.model_dump()})(rank=1)
    assert "is full" in (tmp_path / "parse" / steps.FAILED / "1").read_text()
    assert list((tmp_path / "parse" / "shards").iterdir()) == []


def test_two_builds_do_not_share_a_work_folder(corpus: Path, tmp_path: Path) -> None:
    def again(what: str, done: int, total: int) -> None:
        with pytest.raises(UserError, match="another build is at work"):
            build(settings(corpus), tmp_path / "other", work_folder=tmp_path / "work", **SMALL)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(settings(corpus), tmp_path / "out", work_folder=tmp_path / "work", progress=again, **SMALL)
    assert not (tmp_path / "out" / "manifest.json").exists()


# --- killed ---------------------------------------------------------------------------------------------------------

_BUILD = (
    "import sys, json; from pathlib import Path; from memtrain.recipe import Recipe\n"
    "from memtrain.corpus.documents import build; from memtrain.errors import UserError\n"
    "try: build(Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]), workers=2, shard_bytes=400_000)\n"
    "except UserError as error: print(error); sys.exit(2)\n"
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = corpus_path("enwiki-sample")
    assert source is not None
    folder = source if source.is_dir() else source.parent
    (file,) = folder.glob("*.xml.bz2")
    target = tmp_path_factory.mktemp("dump") / "dump.xml.bz2"
    write_repeated(file, target, 7_000_000, per_stream=4)
    return target


def start(source: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _BUILD, settings(source, "bm25-disk").model_dump_json(), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(out: Path) -> int:
    return len(list(out.glob("work/*/parse/completions/*")))


def wait_for(condition, seconds: float = 60) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(out: Path) -> list[int]:
    return [int(path.name.rpartition(".")[2]) for path in out.glob("work/*/parse/workers/*")]


def alive(process: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "build"])
def test_a_killed_build_goes_on_and_loses_and_doubles_nothing(sample: Path, tmp_path: Path, victim: str) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = start(sample, broken)
    wait_for(lambda: finished(broken) >= 2 and len(workers_of(broken)) == 2)
    workers = workers_of(broken)
    if victim == "worker":
        os.kill(workers[0], signal.SIGKILL)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 2
        assert said.count("\n") == 1
        assert f"worker process {workers[0]}" in said
        assert "was killed" in said
        assert "log.txt" in said
        assert "same command" in said
    else:
        process.kill()
        process.wait()
    wait_for(lambda: not any(map(alive, workers)))  # nothing is left running
    assert not (broken / "manifest.json").exists()
    done = finished(broken)
    (plan,) = broken.glob("work/*/parse/plan.json")
    assert 2 <= done < len(json.loads(plan.read_text())["shards"])
    kept = {path: path.stat().st_mtime_ns for path in broken.glob("work/*/parse/completions/*")}
    assert start(sample, broken).wait() == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())  # not read again
    assert start(sample, whole).wait() == 0
    corpora = [corpus_of(out / "work") for out in (broken, whole)]
    assert corpora[0].rows == corpora[1].rows > 4_000
    rows = range(corpora[0].rows)
    assert list(map(corpora[0].passage, rows)) == list(map(corpora[1].passage, rows))
    assert len({corpora[0].passage(row).id for row in rows}) == len(rows)
    assert load(broken, "train") == load(whole, "train")


# --- other executors ------------------------------------------------------------------------------------------------

_SBATCH = """#!/bin/bash
script="${@: -1}"
offset=0; for word in "$@"; do case "$word" in --export=*) offset="${word##*RUN_OFFSET=}";; esac; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
if [ -n "$last" ]; then for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task RUN_OFFSET=$offset SLURM_NODELIST=here bash "$script" >/dev/null 2>&1 || exit 1
done; fi
echo "Submitted batch job 7"
"""
_SRUN = """#!/bin/bash
while [ "${1:0:1}" = - ]; do [ "$1" = -n ] && shift; shift; done
exec "$@"
"""


def test_slurm_jobs_do_the_same_work(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datatrove's own Slurm road, with a queue of one machine in place of sbatch, srun and squeue."""
    tools = {"sbatch": _SBATCH, "srun": _SRUN, "squeue": "#!/bin/bash\n", "scontrol": "#!/bin/bash\necho here\n"}
    (tmp_path / "bin").mkdir()
    for name, text in tools.items():
        file = tmp_path / "bin" / name
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    options = {"time": "00:10:00", "partition": "cpu"}
    build(settings(corpus), tmp_path / "out", workers=2, shard_bytes=60_000, executor="slurm", executor_options=options)
    build(settings(corpus), tmp_path / "one")
    assert load(tmp_path / "out", "train") == load(tmp_path / "one", "train")


@pytest.mark.slow
def test_ray_does_the_same_work(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    options = {"mem_per_cpu_gb": 0.1, "address": "local"}
    build(settings(corpus), tmp_path / "out", workers=2, shard_bytes=20_000, executor="ray", executor_options=options)
    build(settings(corpus), tmp_path / "one")
    assert load(tmp_path / "out", "train") == load(tmp_path / "one", "train")


def test_the_counter_of_a_worker_is_checked(corpus: Path, tmp_path: Path) -> None:
    step = steps.DrawStep(str(tmp_path / "draw"), {"counter": "another", "split": "train", "count": 1})
    with pytest.raises(UserError, match=f"by {default_counter().name}, the build by another"):
        step(rank=0)
