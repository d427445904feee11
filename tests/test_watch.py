"""``memtrain watch``: a run seen from outside while another process writes, is killed, or has not begun."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from memtrain.commands.watch import watch as command
from memtrain.errors import UserError
from memtrain.evaluation.proxy import EvalResult
from memtrain.recipe import Recipe, parse_recipe
from memtrain.report import watch
from memtrain.report.follow import Follower, Look
from memtrain.report.run_files import Tail


def step(number: int, stage: str = "grpo", **values: Any) -> str:
    return json.dumps({"stage": stage, "step": number, "seconds": 10.0, "reward": float(number), "kl": 0.01} | values)


def write_recipe(folder: Path, priming: int = 3, steps: int = 8) -> Recipe:
    recipe = parse_recipe({"name": "small", "priming": {"steps": priming}, "train": {"steps": steps}}, "here")
    (folder / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    return recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in its third GRPO step, whose process is gone."""
    for name in ("documents", "eval", "samples"):
        (tmp_path / name).mkdir()
    (tmp_path / ".lock").touch()
    write_recipe(tmp_path)
    lines = [step(n, "priming", cross_entropy=2.0 / n) for n in (1, 2, 3)] + [step(1), step(2)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "seconds.json").write_text(json.dumps({"evaluation before": 65.0, "priming": 30.0}))
    for label, kept in (("before", 0.1), ("after_priming", 0.4)):
        records = [{"kind": "reading", "document": f"d{n}", "entities_kept": kept + n / 100} for n in range(4)]
        EvalResult(label=label, bootstrap=50, seed=0, notes={}, records=records).save(tmp_path / f"eval/{label}.json")
    write_sample(tmp_path, 2)
    return tmp_path


def write_sample(folder: Path, number: int, last: str = "Anna lives in Rome [bold] now") -> None:
    rows = [
        {"group_id": "train-7", "trajectory_id": f"train-7/{member}", "kind": "write", "step": write,
         "text": text if member == 1 else "a worse one", "reward": float(member)}
        for member in range(2)
        for write, text in ((1, "Anna lives in Paris"), (2, last))
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"samples/grpo-{number:06d}.parquet")


def frame(look: Look, width: int = 100, **settings: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, **settings)
    console.print(watch.picture(look, console))
    return out.getvalue()


def test_a_run_in_the_middle(run: Path) -> None:
    look = Follower(run).look()
    assert look.state == "stopped"
    assert [(stage.name, stage.done, stage.total) for stage in look.stages] == [
        ("evaluation before", 1, 1), ("priming", 3, 3), ("evaluation after_priming", 1, 1),
        ("grpo", 2, 8), ("evaluation after", 0, 1), ("model", 0, 1),
    ]  # fmt: skip
    text = frame(look)
    for words in (
        "✓ evaluation before 1:05", "▶ grpo 2/8", "2/8, 0:20 so far", "--resume", "reward", "▁▁▁███", "KL to start",
        "newest evaluation: after priming", "0.115 [", "+0.300", "step 2, document train-7, memory 2, reward 1",
        "Anna lives in [-Paris-] {+Rome [bold] now+}",
    ):  # fmt: skip
        assert words in text, words
    assert "worse one" not in text


def test_a_finished_run(run: Path) -> None:
    (run / "summary.json").write_text("{}")
    look = Follower(run).look()
    assert look.state == "finished"
    assert "--resume" not in frame(look)


@pytest.mark.parametrize("width", [24, 40, 59, 60, 89, 90, 200])
def test_every_width_holds(run: Path, width: int) -> None:
    lines = frame(Follower(run).look(), width).splitlines()
    assert max(map(len, lines)) == width
    assert {line[0] for line in lines} == set("╭│╰")


def test_without_colour_and_without_unicode(run: Path) -> None:
    look = Follower(run).look()
    write_sample(run, 3, "Zoë … 東京")
    buffer = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    watch.watch(run, console=Console(file=buffer, width=40))
    buffer.seek(0)
    printed = buffer.read()
    assert "x evaluation before" in printed
    assert "Zo?" in printed
    coloured = frame(look, force_terminal=True, color_system="truecolor", height=60)
    assert "\x1b[1;32m+Rome" in coloured
    assert "{+" not in coloured
    assert "{+Rome" in frame(look, force_terminal=True, color_system="truecolor", no_color=True, height=60)


def test_a_low_terminal_is_not_overrun(run: Path) -> None:
    write_sample(run, 3, "many words " * 400)
    for height in (24, 30):
        assert len(frame(Follower(run).look(), 80, force_terminal=True, height=height).splitlines()) <= height


def test_files_that_are_cut_or_broken(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + 'nonsense\n[1]\n{"stage": "grpo", "st')
    (run / "samples" / "grpo-000003.parquet").write_bytes(b"PAR1 cut")
    (run / "eval" / "step-2.json").write_text('{"format": 1, "records": [')
    (run / "seconds.json").write_text("{")
    look = Follower(run).look()
    assert len(look.rows) == 5
    assert look.sample is not None
    assert look.sample.step == 2
    assert look.evaluation is not None
    assert look.evaluation.label == "after_priming"
    text = " ".join(frame(look, 300).split())
    for words in (
        "2 lines are no steps",
        "ends in the middle of a line",
        "grpo-000003.parquet is not",
        "eval/step-2.json",
    ):
        assert words in text, words


def test_steps_that_should_worry(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write(step(3, reward=math.nan, groups=5.0, dropped_groups=5.0) + "\n")
    text = " ".join(frame(Follower(run).look(), 200).split())
    assert "step 3 of grpo: reward is not a number" in text
    assert "step 3 learned nothing: all groups were dropped" in text


@given(st.lists(st.integers(0, 40)), st.lists(st.text(max_size=5), max_size=5))
def test_a_file_read_in_pieces_is_the_file_read_at_once(cuts: list[int], odd: list[str]) -> None:
    import tempfile

    whole = "\n".join([step(1), *odd, step(2), "", step(3)]).encode("utf-8", "surrogatepass") + b"\n"
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "metrics.jsonl"
        tail, place = Tail(file), 0
        for cut in cuts:
            place += cut
            file.write_bytes(whole[:place]) if not file.exists() else append(file, whole[place - cut : place])
            tail.rows()
        append(file, whole[place:])
        assert [row["step"] for row in tail.rows()] == [1, 2, 3]


def append(file: Path, data: bytes) -> None:
    with file.open("ab") as handle:
        handle.write(data)


def test_a_resumed_run_cuts_its_metrics(run: Path) -> None:
    follower = Follower(run)
    assert len(follower.look().rows) == 5
    part = run / "metrics.part"
    part.write_text((run / "metrics.jsonl").read_text().rsplit("\n", 2)[0] + "\n")
    os.replace(part, run / "metrics.jsonl")
    assert len(follower.look().rows) == 4


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([1, 2, 3], "▁▅█"), ([5, 5], "▅▅"), ([1, math.nan, 2], "▁ █"), ([math.nan], " "), ([], ""), ([1, 1e308], "▁█")],
)
def test_sparkline(values: list[float], drawn: str) -> None:
    assert watch.sparkline(values, 10) == drawn


@given(st.lists(st.floats()), st.integers(1, 30))
def test_any_numbers_can_be_drawn(values: list[float], width: int) -> None:
    assert len(watch.sparkline(values, width)) == min(width, len(values))


def test_no_run_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there; give the folder of a run"):
        command(str(tmp_path / "none"), once=True)
    with pytest.raises(UserError, match="holds no run"):
        command(str(tmp_path), once=True)
    with pytest.raises(UserError, match="--every is 0"):
        command(str(tmp_path), every=0)
    (tmp_path / "one").mkdir()
    write_recipe(tmp_path / "one")
    with pytest.raises(UserError, match="holds 1 runs; name one of them"):
        command(str(tmp_path), once=True)
    with pytest.raises(UserError, match=r"recipe\.json is a file"):
        command(str(tmp_path / "one" / "recipe.json"), once=True)


WRITER = """
    import fcntl, json, pathlib, sys, time
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    lock = (folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    sys.stdin.readline()
    (folder / "recipe.part").write_text(sys.argv[2])
    (folder / "recipe.part").replace(folder / "recipe.json")
    with (folder / "metrics.jsonl").open("a") as out:
        for step in range(1, 4):
            sys.stdin.readline()
            line = json.dumps({"stage": "grpo", "step": step, "seconds": 4.0, "reward": step / 2}) + "\\n"
            out.write(line[:20]); out.flush()
            time.sleep(0.05)
            out.write(line[20:]); out.flush()
        out.write('{"stage": "gr'); out.flush()
    sys.stdin.readline()
"""


def test_a_process_is_followed_until_it_is_killed_and_finished(tmp_path: Path) -> None:
    """The live picture itself, drawn on a pretended terminal while another process holds the lock."""
    folder, out = tmp_path / "run", io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, height=40)
    follower = Follower(folder)
    recipe = json.dumps(write_recipe(tmp_path, 0, 3).model_dump(mode="json"))
    drawing = threading.Thread(target=watch.watch, args=(folder, False, 0.1, console), daemon=True)
    drawing.start()
    wait(lambda: "waiting for a run to start" in out.getvalue())
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), recipe], stdin=subprocess.PIPE, text=True
    )
    try:
        wait(lambda: follower.look().state == "starting")

        def go() -> None:
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()

        go()
        wait(lambda: follower.look().state == "running")
        for number in (1, 2):
            go()
            wait(lambda n=number: len(follower.look().rows) == n)  # type: ignore[misc]
        look = follower.look()
        assert look.state == "running"
        left = look.left()
        assert left is not None
        assert 0 <= left <= 4.0
        go()
        wait(lambda: len(follower.look().rows) == 3)
        assert "middle of a line" not in frame(follower.look())
        later = Follower(folder, now=lambda: time.time() + 1000).look()
        assert "no step, sample or evaluation was written for 16:" in " ".join(frame(later, 200).split())
    finally:
        writer.kill()
        writer.wait()
    wait(lambda: follower.look().state == "stopped")
    assert "middle of a line" in frame(follower.look())
    (folder / "summary.json").write_text("{}")
    drawing.join(10)
    assert not drawing.is_alive()
    assert "finished" in out.getvalue()


def wait(until: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_the_lock_is_seen_where_the_system_lists_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("memtrain.report.run_files._proc_locks", list)
    with (run / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert Follower(run).look().state == "running"
    assert Follower(run).look().state == "stopped"


def test_ctrl_c_ends_it_quietly(run: Path) -> None:
    import pty
    import signal

    ours, theirs = pty.openpty()
    look = "import sys; from memtrain.commands.watch import watch; watch(sys.argv[1], every=0.1)"
    watcher = subprocess.Popen([sys.executable, "-c", look, str(run)], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert os.read(ours, 100)
    time.sleep(0.3)
    watcher.send_signal(signal.SIGINT)
    assert watcher.communicate(timeout=20)[1] == b""
    assert watcher.returncode == 0
    os.close(ours)


@pytest.mark.slow
def test_a_real_training_that_is_killed_and_resumed(tmp_path: Path) -> None:
    """A terminal of its own watches a real run of a tiny model: kill -9 in the middle, then --resume to the end."""
    import pty
    import signal

    from tiny_run import small

    recipe = small(train={"steps": 30, "documents_per_step": 2, "group_size": 2}, log={"checkpoint_every": 2})
    (tmp_path / "recipe.json.txt").write_text(recipe.model_dump_json())
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from memtrain import pipeline
        from memtrain.recipe import Recipe
        from memtrain.rl.checkpoint import RunFolder
        recipe = Recipe.model_validate_json(Path({str(tmp_path / "recipe.json.txt")!r}).read_text())
        pipeline.train(recipe, RunFolder(Path({str(tmp_path / "run")!r})), resume=True)
    """
    look = "import sys; from memtrain.commands.watch import watch; watch(sys.argv[1], every=0.1)"
    ours, theirs = pty.openpty()
    watcher = subprocess.Popen(
        [sys.executable, "-c", look, str(tmp_path / "run")],
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                seen.extend(data)
        except OSError:  # the terminal's end
            pass

    reading = threading.Thread(target=read, daemon=True)
    reading.start()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    wait(lambda: b"waiting" in seen, 60)
    training = start()
    wait(lambda: len(Follower(tmp_path / "run").look().rows) >= 8 and b"running" in seen, 120)
    training.send_signal(signal.SIGKILL)
    training.wait()
    wait(lambda: b"stopped" in seen, 60)
    assert start().wait(300) == 0
    assert watcher.wait(60) == 0
    reading.join(10)
    text = seen.decode()
    for words in ("evaluation before is under way", "priming", "grpo", "newest memory", "finished", "30/30"):
        assert words in text, words
    assert "Traceback" not in text
