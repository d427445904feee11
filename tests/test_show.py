"""What ``memtrain show`` prints, from documents and rollouts written as a build and a run write them."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from memtrain.corpus import store
from memtrain.errors import UserError
from memtrain.report import show
from memtrain.types import Mention, TrainingDocument


def document(
    number: int, mentions: tuple[Mention, ...] = (Mention("Anna", "name"), Mention("1912", "date"))
) -> TrainingDocument:
    text = f"Document 1:\nAnna met [MASK] in 1912 [sic].{' Rain fell.' * 60}\n\nDocument 2:\nIn [MASK] it rained."
    return TrainingDocument(
        id=f"train-{number}", text=text, answer="Paris", answer_kind="link", aliases=("Lutetia",), pivot_id="p#0",
        passage_ids=("p#0", "p#1"), seed=number, n_masks=2, n_tokens=1234, mentions=mentions,
    )  # fmt: skip


@pytest.fixture
def built(tmp_path: Path) -> Path:
    writers = [store.DocumentWriter(tmp_path, split) for split in ("train", "held_out")]
    for number in range(3):
        writers[0].write(document(number))
    writers[1].write(document(9, ()))
    for writer in writers:
        writer.close()
    store.publish(tmp_path, writers, {})
    return tmp_path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [
        {
            "group_id": f"train-{group}",
            "trajectory_id": f"train-{group}/{member}",
            "kind": "write",
            "step": 1,
            "prompt": "Read [MASK]. " + "x" * 5000,
            "completion": f"notes of {group} by {member} [bold]",
            "reward": 0.25 + member,
            "advantage": -0.5,
        }
        for group in range(2)
        for member in range(2)
    ]
    (tmp_path / "samples").mkdir()
    for step in (2, 10):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "samples" / f"step-{step:06d}.parquet")
    return tmp_path


def printed(*arguments: object, **settings: object) -> str:
    out = io.StringIO()
    show.show(*arguments, **settings, console=Console(file=out, width=100))  # type: ignore[arg-type]
    return out.getvalue()


def test_documents(built: Path) -> None:
    text = printed(built, "documents", n=2)
    assert "train-0" in text
    assert "train-1" in text
    assert "train-2" not in text
    for piece in ("Paris (link), 2 times", "Lutetia", "1,234 tokens, 2 passages, pivot p#0", "Anna; 1912", "[sic]"):
        assert piece in text
    assert text.count("…") >= 2  # the rain between the masks is left out


def test_documents_of_a_run_are_found_inside_it(built: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "documents").symlink_to(built)
    assert "train-0" in printed(run)


def test_held_out_documents_and_no_mentions(built: Path) -> None:
    text = printed(built, split="held_out")
    assert "train-9" in text
    assert "mentions none" in text


def test_probes(built: Path) -> None:
    text = printed(built, "probes", n=3)
    assert text.count("[TARGET]") >= 3
    assert "passages ago; answer: " in text
    assert printed(built, "probes", n=3) == text
    assert "no entity to ask for" in printed(built, "probes", split="held_out")


def test_rollouts_of_the_last_step(run: Path) -> None:
    text = printed(run, "rollouts", n=1)
    assert "step-000010: group train-0" in text
    assert "group train-1" not in text
    assert "notes of 0 by 0 [bold]" in text
    assert "reward 1.25, advantage -0.5" in text
    assert text.count("characters …") == 1  # the prompt that the group shares, once and shortened


def test_rollouts_of_one_step(run: Path) -> None:
    assert "step-000002" in printed(run, "rollouts", step=2)
    with pytest.raises(UserError, match="no step 3; there are 2, 10"):
        printed(run, "rollouts", step=3)


def test_a_broken_file_is_named(run: Path) -> None:
    (run / "samples" / "step-000010.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="step-000010"):
        printed(run, "rollouts")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memtrain build"):
        printed(tmp_path)
    with pytest.raises(UserError, match=r"log\.samples"):
        printed(tmp_path, "rollouts")
    with pytest.raises(UserError, match="not a folder"):
        printed(tmp_path / "none")
    with pytest.raises(UserError, match="--n is 0"):
        printed(tmp_path, n=0)


@given(st.lists(st.sampled_from(["[MASK]", "word ", "longer word ", "x" * 300, "\n"]), max_size=12).map("".join))
def test_every_mask_is_shown_once(text: str) -> None:
    pieces = show.around_masks(text)
    assert sum(piece.count("[MASK]") for piece in pieces) == text.count("[MASK]")


@given(st.text(max_size=60), st.integers(1, 20))
def test_ends_keep_both_ends(text: str, chars: int) -> None:
    shown = show.ends(text, chars)
    assert shown.startswith(text[:chars])
    assert shown.endswith(text[-chars:] if text else "")
