"""Which messages are new: hashes of histories, and windows of them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.memory.text_model import Message
from memtrain.serving.history import beginnings, extend, overlap

TEXTS = st.text(alphabet="ab\n :", max_size=6)
DIALOGUES = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXTS), max_size=8)


def plain(messages: list[Message]) -> list[tuple[str, list[str]]]:
    return [(message.role, message.content.split()) for message in messages]


@given(DIALOGUES, DIALOGUES)
@settings(max_examples=300, deadline=None)
def test_a_hash_is_of_the_words_in_their_order(one: list[Message], other: list[Message]) -> None:
    assert (extend("", one) == extend("", other)) == (plain(one) == plain(other))
    assert extend(extend("", one), other) == extend("", one + other)
    spaced = [Message(message.role, f" {message.content}\n") for message in one]
    assert extend("", [Message("system", "anything"), *spaced]) == extend("", one)


@given(DIALOGUES)
@settings(max_examples=100, deadline=None)
def test_beginnings_end_with_replies(dialogue: list[Message]) -> None:
    found = beginnings(dialogue)
    assert [n for n, _ in found] == [n for n in range(len(dialogue), 0, -1) if dialogue[n - 1].role == "assistant"]
    assert all(seen == extend("", dialogue[:n]) for n, seen in found)


@given(DIALOGUES, DIALOGUES, DIALOGUES)
@settings(max_examples=300, deadline=None)
def test_a_window_begins_with_what_was_said_last(old: list[Message], window: list[Message], new: list[Message]) -> None:
    window = [*window, Message("assistant", "unheard of")]
    new = [*(m for m in new if m.content != "unheard of"), Message("user", "next")]
    assert overlap([*old, *window], [*window, *new]) == len(window)
    assert overlap(old, new) <= len(new) - 1
    assert overlap([*old, *window], new) == 0  # without its last reply it is no window of this conversation
