"""Notes made from the text itself: what priming teaches a small model to write.

Extractive and telegraphic: each sentence becomes a clause of its entities, spelt as in the text, and the few content
words next to them, in the order of the text: ``Proudhon first anarchist 1840 Property; ...``. Copying forward with gaps
is the easiest thing a small model can learn, a word between two entities ties both, and what is kept can be found again
letter by letter. Notes over several chunks carry earlier facts along: every chunk keeps a fair share of the room, and
the notes at step k hold nothing that the notes at k-1 and chunk k do not. Nothing here imports torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from memtrain.corpus.entities import STOPWORDS
from memtrain.corpus.masking import occurrences
from memtrain.types import MASK_TOKEN

CountTokens = Callable[[str], int]

_HEADING = re.compile(r"(?m)^Document \d+:")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[^\W\d_a-z])|(?<=[。！？])|\n+")
_WORD = re.compile(r"[^\W_](?:[\w'’.,\-–]*[^\W_])?")
_REACH = 8
"""How many words away from an entity a tying word may stand."""
_TRIES = 12
"""How many shorter facts are tried for the room that is left over."""
_MAX_WORD_CHARS = 24
"""Longer "words" are whole clauses of a script without spaces, or addresses: no tying words."""


@dataclass(frozen=True)
class NoteStyle:
    """The knobs of note making; :data:`FACTS` and :data:`ENTITIES` are the two of the recipe."""

    words: int = 1
    """Tying words an entity of the newest chunk; 0 makes a bare list."""
    old_words: int | None = None
    """Tying words an entity of earlier chunks (at most ``words``); None: as many, so old notes are copied as is."""
    mask_words: int = 4
    """Tying words of ``[MASK]``, which the question of the document asks for."""
    mask_weight: float = 4.0
    """Priority of ``[MASK]`` (a named entity has 1)."""
    plain_weight: float = 0.5
    """Priority of an entity without capital or digit (common words are easier to guess without notes)."""
    repeat_weight: float = 0.25
    """Added to the priority for every further chunk of the document that the entity stands in."""
    length_power: float = 0.25
    """Priority is divided by the entity's characters to this power: above 0 keeps more, shorter entities."""
    before_first: bool = True
    """Of two tying words equally near, take the one before the entity (else the one after it)."""
    jitter: float = 0.5
    """Share of random variation of the priorities: 0 makes the same notes every time."""
    new_share: float = 1.0
    """How much of the room the newest chunk gets, relative to each earlier one."""
    separator: str = "; "
    """Between clauses."""
    verbatim: bool = False
    """Tying words are the ones right before the entity, function words too: a copied run of the text."""


FACTS = NoteStyle(words=2, verbatim=True, jitter=0, length_power=0, repeat_weight=0, plain_weight=1)
ENTITIES = NoteStyle(words=0, mask_words=0)


@dataclass(frozen=True)
class Fact:
    """One entity at one place, with the words that tie it."""

    chunk: int
    """Index of the chunk."""
    sentence: int
    """Index of the sentence in the chunk."""
    place: int
    """Index of the entity among the words of the sentence (an entity counts as one)."""
    text: str
    """The entity as it stands there."""
    words: tuple[tuple[int, str], ...]
    """Tying words with their places, most useful first."""
    priority: float
    """Higher is kept longer."""


@dataclass(frozen=True)
class Notes:
    """What a memory holds, and how it reads."""

    facts: tuple[Fact, ...] = ()
    """Kept facts of all chunks so far, by chunk, then priority."""
    text: str = ""
    """The memory itself; empty where nothing was kept."""

    @property
    def entities(self) -> frozenset[str]:
        """Surface forms kept."""
        return frozenset(fact.text for fact in self.facts)


def extend(
    notes: Notes, new: Sequence[Fact], budget: int, count_tokens: CountTokens, style: NoteStyle = FACTS
) -> Notes:
    """m[k] = what fits of m[k-1] and the facts of the newest chunk.

    ``[MASK]`` comes first; then the chunks take turns, each offering its facts in the order of priority, so that each
    keeps about as many as the others. ``budget`` is the most tokens of the text, by ``count_tokens``. Old facts are
    shortened to ``old_words``.
    """
    old = [_shortened(fact, style) for fact in notes.facts]
    newest = [fact for fact in new if fact.text not in notes.entities]
    turn: dict[int, int] = {}
    queue: list[tuple[float, float, Fact]] = []
    for fact in [*old, *newest]:
        if fact.text == MASK_TOKEN:
            queue.append((0.0, -fact.priority, fact))
            continue
        turn[fact.chunk] = turn.get(fact.chunk, 0) + 1
        share = style.new_share if newest and fact.chunk == newest[0].chunk else 1.0
        queue.append((turn[fact.chunk] / share, -fact.priority, fact))
    ordered = [fact for *_, fact in sorted(queue, key=lambda item: item[:2])]
    kept = _fit(ordered, lambda facts: count_tokens(render(facts, style)) <= budget)
    kept = sorted(kept, key=lambda fact: (fact.chunk, -fact.priority))
    return Notes(facts=tuple(kept), text=render(kept, style))


def _shortened(fact: Fact, style: NoteStyle) -> Fact:
    if style.old_words is None or fact.text == MASK_TOKEN:
        return fact
    return replace(fact, words=fact.words[: style.old_words])


def _fit(ordered: Sequence[Fact], fits: Callable[[Sequence[Fact]], bool]) -> list[Fact]:
    """The longest beginning that fits (by bisection: each fact adds length), then what still goes in after it."""
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(ordered[:middle]) else (low, middle - 1)
    kept = list(ordered[:low])
    for fact in ordered[low + 1 : low + 1 + _TRIES]:
        if fits([*kept, fact]):
            kept.append(fact)
    return kept


def find_facts(
    chunk: str,
    index: int,
    entities: Sequence[str],
    rng: random.Random,
    style: NoteStyle = FACTS,
    repeats: Callable[[str], int] = lambda _: 1,
) -> list[Fact]:
    """The facts of one chunk, highest priority first; one an entity, at its first place.

    ``entities``: surface forms that may stand in the chunk (``[MASK]`` is looked for as well); ``repeats``: in how many
    chunks of the document an entity stands.
    """
    spans = _entity_spans(chunk, entities)
    facts: list[Fact] = []
    seen: set[str] = set()
    for number, (start, end) in enumerate(sentences(chunk, spans)):
        units = _units(chunk, start, end, [span for span in spans if start <= span[0] < end])
        for place, (text, is_entity) in enumerate(units):
            if not is_entity or text in seen:
                continue
            seen.add(text)
            n_words = style.mask_words if text == MASK_TOKEN else style.words
            if style.verbatim:
                words = _words_before(units, place, n_words)
            else:
                words = _tying_words(units, place, n_words, style.before_first)
            priority = _weight(text, style, repeats(text)) * (1 - style.jitter * rng.random())
            facts.append(Fact(index, number, place, text, words, priority))
    return sorted(facts, key=lambda fact: -fact.priority)


def render(facts: Sequence[Fact], style: NoteStyle = FACTS) -> str:
    """Facts as text: clauses in the order of the text, one a sentence (a bare list: one an entity)."""
    clauses: dict[tuple[int, int], dict[int, tuple[str, bool]]] = {}
    for fact in facts:
        units = clauses.setdefault((fact.chunk, fact.sentence), {})
        for place, word in fact.words:
            if style.verbatim or all(word.lower() not in known.lower().split() for known, _ in units.values()):
                units.setdefault(place, (word, False))
        units[fact.place] = (fact.text, True)
    bare = style.words == 0 and style.mask_words == 0
    texts: list[str] = []
    for _, units in sorted(clauses.items()):
        ordered = [units[place] for place in sorted(units)]
        text = ordered[0][0]
        for (_, was_entity), (word, is_entity) in pairwise(ordered):
            # Two entities side by side would read as one name.
            text += (style.separator if bare else ", ") + word if was_entity and is_entity else f" {word}"
        texts.append(text)
    return style.separator.join(texts)


def _weight(text: str, style: NoteStyle, repeats: int) -> float:
    if text == MASK_TOKEN:
        return style.mask_weight
    named = any(char.isupper() or char.isdigit() for char in text) or text.lower() == text.upper()
    weight = (1.0 if named else style.plain_weight) + style.repeat_weight * max(0, repeats - 1)
    return weight / len(text) ** style.length_power


def _entity_spans(chunk: str, entities: Sequence[str]) -> list[tuple[int, int]]:
    """Places of the entities, longest first where they overlap, ascending."""
    taken: list[tuple[int, int]] = []
    for text in sorted({MASK_TOKEN, *entities}, key=lambda text: (-len(text), text)):
        if text.split()[0] in chunk:
            for start, end in occurrences(chunk, text):
                if all(end <= left or right <= start for left, right in taken):
                    taken.append((start, end))
    return sorted(taken)


def sentences(chunk: str, spans: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """Sentences as ``[start, end)``; "Document i:" headings belong to none, and none ends inside an entity."""
    cuts = {0, len(chunk)}
    headings: dict[int, int] = {}
    for match in _SENTENCE_END.finditer(chunk):
        if not any(start < match.end() < end for start, end in spans):
            cuts.add(match.end())
    for match in _HEADING.finditer(chunk):
        cuts.update(match.span())
        headings[match.start()] = match.end()
    borders = sorted(cuts)
    pairs = pairwise(borders)
    return [(start, end) for start, end in pairs if not any(a <= start < b for a, b in headings.items())]


def _units(chunk: str, start: int, end: int, spans: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """Words of a sentence in order, each entity as one unit: ``(text, is it an entity)``."""
    units: list[tuple[str, bool]] = []
    position = start
    for left, right in [*spans, (end, end)]:
        units.extend((match.group(), False) for match in _WORD.finditer(chunk, position, max(position, left)))
        if right > left:
            units.append((" ".join(chunk[left:right].split()), True))
        position = right
    return units


def _words_before(units: Sequence[tuple[str, bool]], place: int, n: int) -> tuple[tuple[int, str], ...]:
    """The ``n`` words right before a place, nearest first, up to the entity before it."""
    found: list[tuple[int, str]] = []
    for other in range(place - 1, max(-1, place - 1 - n), -1):
        if units[other][1]:
            break
        found.append((other, units[other][0]))
    return tuple(found)


def _tying_words(
    units: Sequence[tuple[str, bool]], place: int, n: int, before_first: bool
) -> tuple[tuple[int, str], ...]:
    """The ``n`` nearest content words with their places; names and numbers count as two words nearer."""
    ranked: list[tuple[int, bool, int, str]] = []
    for other in range(max(0, place - _REACH), min(len(units), place + _REACH + 1)):
        word, is_entity = units[other]
        if is_entity or word.lower() in STOPWORDS or not 2 < len(word) + 2 * word.isdigit() <= _MAX_WORD_CHARS:
            continue
        special = word[0].isupper() or any(char.isdigit() for char in word)
        ranked.append((abs(other - place) - 2 * special, (other < place) != before_first, other, word))
    return tuple((other, word) for _, _, other, word in sorted(ranked)[:n])
