"""The searcher: it looks things up, and only a bounded memory that it writes itself remains from turn to turn.

MEM1 (arXiv 2506.15841) with the actions of Search-R1 (arXiv 2503.09516), each turn a conversation of its own as in
MemAgent (arXiv 2507.02259). What a search finds stands in the next prompt only: it is never trained on, and it is gone
after that turn unless the memory keeps it. Straight-line code that awaits the engine and the retriever. No torch.

Turn t sees the memory m[t-1] and the results of the search before it; its reply is thoughts, the memory m[t], and one
action. The memory is what stands between ``<memory>`` tags, else everything before the action; where that is blank the
old memory stays. A reply without an action costs its turn: the memory is written all the same, the results are shown
once more, and the next prompt tells. In the last turn a search is no action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memtrain.engines.base import Engine
from memtrain.memory.prompts import NO_MEMORY
from memtrain.memory.reader import turn_of
from memtrain.memory.search_prompts import (
    BOX,
    MEMORY_CLOSE,
    MEMORY_OPEN,
    MOST_QUERY_CHARS,
    SEARCH_CLOSE,
    SEARCH_OPEN,
    SearchPrompts,
)
from memtrain.search.base import Found, Retriever
from memtrain.types import Trajectory


@dataclass(frozen=True)
class Action:
    """What a reply asks for."""

    kind: Literal["search", "answer", "none"]
    content: str = ""
    """The query, or what stands in the box."""
    memory: str = ""
    """What stands before the action, or in the last memory tags there; may be blank."""


@dataclass(frozen=True)
class Search:
    """One search of an episode."""

    turn: int
    """The turn whose action it was; its results are shown in the turn after it."""
    query: str
    found: Found


@dataclass(frozen=True)
class SearchEpisode:
    """One episode of the searcher."""

    trajectory: Trajectory
    """T ``search`` turns, which write m[1..T], then the ``answer`` turn where there was one."""
    shown: tuple[str, ...]
    """Results as each of the T turns saw them, and last as an answer sees them; ``""`` where none are there yet."""
    searches: tuple[Search, ...]
    lost: int
    """Turns whose reply had no action, a last turn without an answer among them."""

    @property
    def failed(self) -> int:
        """Searches that the retriever did not answer."""
        return sum(search.found.failed for search in self.searches)


async def search(
    engine: Engine,
    prompts: SearchPrompts,
    retriever: Retriever,
    questions: Sequence[str],
    *,
    temperature: float,
    top_p: float = 1.0,
    document_id: str,
    index: int,
    answering: bool = True,
) -> SearchEpisode:
    """Answer questions (one text, one box), with at most ``search.max_turns`` turns and one search a turn.

    The trajectory's answer is the text of the answer turn; it holds a box only if the model gave one. Without
    ``answering`` the last turn, which can only answer, is left out: for rewards that score a known answer.
    """
    settings = prompts.search
    memory, results, lost = NO_MEMORY, "", False
    turns, memories, shown, searches, n_lost = [], [memory], [], list[Search](), 0
    for number in range(1, settings.max_turns + 1):
        last = number == settings.max_turns
        shown.append(results)
        if last and not answering:
            break
        prompt_ids = prompts.turn(questions, results, memory, number, lost)
        [completion] = await engine.sample(prompt_ids, prompts.sampling(temperature, top_p, last=last))
        turn = turn_of(prompts, "search", number, prompt_ids, completion)
        action = parse(turn.text, searching=not last)
        lost = action.kind == "none"
        n_lost += lost
        if last or action.kind == "answer":
            turns.append(turn_of(prompts, "answer", number, prompt_ids, completion))
            break
        turns.append(turn)
        memory = prompts.kept(action.memory) or memory
        memories.append(memory)
        if action.kind == "search":
            query = action.content[:MOST_QUERY_CHARS]
            [found] = await retriever.search([query], settings.topk)
            searches.append(Search(number, query, found))
            results = prompts.shown(query, found)
    answer = next((turn.text for turn in turns if turn.kind == "answer"), "")
    trajectory = Trajectory(document_id, index, tuple(turns), tuple(memories), answer)
    return SearchEpisode(trajectory, tuple(shown), tuple(searches), n_lost)


def parse(reply: str, *, searching: bool = True) -> Action:
    """The action that a reply ends with: of its last search and its last box, whichever ends later.

    A search needs both tags and something between them, a box balanced braces and something in it; text after the
    action does not matter. Without ``searching`` only a box counts.
    """
    found, box = (_last_search(reply) if searching else None), last_box(reply)
    if found is not None and (box is None or found[1] > box[1]):
        return Action("search", found[2], _memory(reply[: found[0]]))
    if box is not None:
        return Action("answer", box[2], _memory(reply[: box[0]]))
    return Action("none", memory=_memory(reply))


def boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every ``\\boxed{...}`` with balanced braces and something in it, by their starts."""
    found, opened = [], list[int]()
    for place, char in enumerate(text):
        if char == "{":
            opened.append(place)
        elif char == "}" and opened:
            brace = opened.pop()
            content = text[brace + 1 : place].strip()
            if content and text.endswith(BOX, 0, brace + 1):
                found.append((brace + 1 - len(BOX), place + 1, content))
    return sorted(found)


def last_box(text: str) -> tuple[int, int, str] | None:
    """The box that begins last, as the verifier of the other tasks takes it, but wherever it stands."""
    return next(reversed(boxes(text)), None)


def _last_search(text: str) -> tuple[int, int, str] | None:
    end = text.rfind(SEARCH_CLOSE)
    while end >= 0:
        start = text.rfind(SEARCH_OPEN, 0, end)
        content = text[start + len(SEARCH_OPEN) : end].strip() if start >= 0 else ""
        if content and SEARCH_CLOSE not in content:
            return start, end + len(SEARCH_CLOSE), content
        end = text.rfind(SEARCH_CLOSE, 0, end)
    return None


def _memory(before: str) -> str:
    """What is in the last memory tags (the closing one may be missing), else all of it without stray tags."""
    start = before.rfind(MEMORY_OPEN)
    if start >= 0:
        return before[start + len(MEMORY_OPEN) :].partition(MEMORY_CLOSE)[0].strip()
    return before.replace(MEMORY_CLOSE, "").strip()
