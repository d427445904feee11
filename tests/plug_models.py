"""The deterministic note-keeping model of ``notebook_model.py``, behind the interfaces of agent frameworks.

It also knows the prompts of the full style, which the plugs use unless told otherwise.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from notebook_model import ASKED, CHAT, MEMORY, NotebookModel, _facts

from memtrain.memory.chat import ChatAgent
from memtrain.memory.text_model import Message
from memtrain.memory.texts import FULL

EXAMPLES = Path(__file__).parents[1] / "examples" / "plugs"


class FullNotebook(NotebookModel):
    """Writes memories and answers in both styles."""

    def _said(self, messages: Sequence[Message]) -> str:
        return said([(message.role, message.content) for message in messages])


def said(messages: Sequence[tuple[str, str]]) -> str:
    """What the notebook says to a conversation of (role, text)."""
    last = messages[-1][1]
    if is_write(last):
        heading = FULL.memory if last.endswith(FULL.write_cue) else FULL.chat_memory
        section, _, notes = last.rpartition(f"{heading}\n")
        return "\n".join(f"FACT {key}={value}" for key, value in _facts(notes, section).items()) or "Nothing."
    if last.endswith(FULL.answer_cue):
        known, asked = _facts(last), ASKED.findall(last)
        return f"\\boxed{{{known.get(asked[-1], 'unknown') if asked else 'unknown'}}}"
    return NotebookModel()._said([Message("user" if role == "tool" else role, text) for role, text in messages])  # type: ignore[arg-type]


def is_write(text: str) -> bool:
    """Whether a prompt asks for a memory."""
    return text.endswith((FULL.write_cue, FULL.chat_write_cue))


def full_agent() -> ChatAgent:
    """Serves both styles, with room for prompts that hold a memory of their own."""
    return ChatAgent(FullNotebook(), MEMORY, CHAT.model_copy(update={"context_tokens": 20_000}))


def run_example(name: str, *arguments: str, said: str = "") -> str:
    """What an example prints; it must end well."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], input=said, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
    return done.stdout


def travel(turns: int = 14) -> str:
    """Lines of a conversation in which the hotel changes, longer than a small budget."""
    facts = {0: "FACT name=Ada FACT hotel=Ritz ", 6: "FACT hotel=Savoy "}
    return "\n".join([*(facts.get(turn, "") + small_talk(turn) for turn in range(turns)), "hotel?", "name?"])


def assert_travelled(printed: str) -> None:
    """The end of that conversation, as the examples print it."""
    lines = printed.strip().splitlines()
    assert lines[-4] == "Savoy"
    assert lines[-2] == "Ada"
    assert "FACT hotel=Savoy" in lines[-1]
    assert "Ritz" not in lines[-1]


def small_talk(number: int, words: int = 60) -> str:
    """Something long that need not be remembered."""
    return f"On day {number} nothing happened. " + " ".join(f"blah{number}x{word}" for word in range(words))
