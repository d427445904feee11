"""What may be hidden: a finder interface, its wiki-link implementation, and the choice between the finders.

The published pipeline takes every spaCy entity (MemTrain, arXiv 2606.03197). Links need no model and no language, and
an encyclopaedia's authors have already marked what matters; rules need nothing but text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from memtrain.corpus.masking import count_occurrences, fold, occurrences, survives
from memtrain.corpus.rules import RulesFinder
from memtrain.errors import UserError
from memtrain.recipe import EntitySettings
from memtrain.types import MASK_TOKEN, TARGET_TOKEN, Entity, Passage

LINKED_SHARE = 0.1
"""``auto`` takes links where at least this share of the passages has one."""
MAX_CHARS = 100
"""Longest entity in characters: a bound for scripts without spaces, where words cannot be counted."""

# Words that links and rules may carry but that nobody could be asked to remember.
_STOPWORDS = (
    "a about above after again all also although an and another any are as at be because been before being both but by "
    "can could did do does during each either few first for from further had has have he her here hers him his how "
    "however i if in into is it its itself last later many me more most much my new no nor not now of off old on once "
    "one only or other others our out over own same several she should since so some such than that the their them "
    "then there these they this those though three through thus to too two under until up us very was we were what "
    "when where which while who whom whose why will with would yet you your yes four five six seven eight nine ten"
)
STOPWORDS = frozenset(_STOPWORDS.split())


class EntityFinder(Protocol):
    """Finds the entities of a passage."""

    name: str
    """``links``, ``rules`` or ``spacy:PIPELINE``: goes into ``Entity.source`` and the manifest."""

    def find(self, passage: Passage) -> tuple[Entity, ...]:
        """Entities of one passage, in the order of their first span; spans do not overlap."""
        ...

    def find_many(self, passages: Sequence[Passage]) -> Iterator[tuple[Entity, ...]]:
        """:meth:`find` for several passages, as a batch where that is faster."""
        ...

    def limits(self) -> str:
        """One sentence: what this finder cannot do."""
        ...


def make_finder(
    spec: str,
    passages: Sequence[Passage],
    aliases: Mapping[str, Sequence[str]],
    linked: int | None = None,
    links_finder: Callable[[], EntityFinder] | None = None,
) -> EntityFinder:
    """The finder a recipe asks for: ``auto``, ``links``, ``rules`` or ``spacy:PIPELINE``.

    ``passages`` are those of the whole corpus (links of a page are found again in its other passages; the rules learn
    from them which words start sentences); ``aliases``: title of a page -> titles that redirect to it; ``linked``: how
    many passages have a link, where it is known; ``links_finder``: makes another finder by links than the usual one.
    Raises :class:`UserError` for another spec, for ``links`` where no passage has one, and for a missing pipeline.
    """
    if linked is None:
        linked = sum(1 for passage in passages if passage.entities)
    if spec == "auto":
        spec = "links" if passages and linked >= LINKED_SHARE * len(passages) else "rules"
    elif spec == "links" and not linked:
        raise UserError(
            "key 'entities.finder' is 'links', but no passage of the corpus has a link: "
            'use "rules", or a MediaWiki dump as corpus.source'
        )
    if spec == "links":
        return links_finder() if links_finder else LinksFinder(passages, aliases)
    if spec == "rules":
        return RulesFinder(passages)
    if spec.startswith("spacy:") and len(spec) > len("spacy:"):
        from memtrain.corpus.spacy_finder import SpacyFinder

        return SpacyFinder(spec.removeprefix("spacy:"))
    raise UserError(f'key \'entities.finder\' is {spec!r}: use "auto", "links", "rules" or "spacy:PIPELINE"')


def page_of(passage: Passage) -> str:
    """Id of the page a passage comes from: its id without the paragraph number."""
    return passage.id.rpartition("#")[0] or passage.id


_TRAILING = re.compile(r"(?:['’]s?|[\s,;:.!?·–—-])+$")
_LEADING = re.compile(r"^[\s,;:.!?·'’–—-]+")
_QUALIFIER = re.compile(r"\s*\([^()]*\)$")


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Narrow ``[start, end)`` of ``text``: no white space, punctuation or possessive at the edges.

    A full stop stays where the surface has another one inside (``U.S.``) or is an abbreviation like ``Jr.``.
    """
    surface = text[start:end]
    lead = _LEADING.match(surface)
    if lead:
        start += lead.end()
    trail = _TRAILING.search(text, start, end)
    if trail:
        kept = trail.start()
        last = re.search(r"\S*$", text[start:kept])
        word = last.group() if last else ""
        if text[kept : kept + 1] == "." and kept < end and ("." in word or word in ("Jr", "Sr", "St", "Inc", "Co")):
            kept += 1
        end = kept
    return start, max(start, end)


def _is_short_for(text: str, name: str) -> bool:
    """Whether ``text`` is the initials or the last words of the full name ``name``."""
    words = name.split()
    if len(text) > 1 and text.replace(".", "") == "".join(word[0] for word in words if word[0].isupper()):
        return True
    return all(word[0].isupper() for word in words) and name.endswith(" " + text)


class LinksFinder:
    """Wiki links of a passage, their exact re-mentions, and its page's linked names and title where they recur.

    Wikipedia links a thing once, at its first mention, so names that any passage of a page links are looked up in all
    its passages. Lower-case links ("philosophy") are looked up in their own passage only.
    """

    name = "links"

    def __init__(self, passages: Sequence[Passage], aliases: Mapping[str, Sequence[str]]) -> None:
        self._aliases = aliases
        self._page_names: dict[str, dict[str, Entity]] = {}
        for passage in passages:
            self.learn(self._page_names.setdefault(page_of(passage), {}), passage)

    def learn(self, names: dict[str, Entity], passage: Passage) -> None:
        """Add to the names of a page those that this passage of it links, and its title.

        Their ``aliases`` are what they link to: synonyms are looked for where a name is found.
        """
        for entity in self._links(passage):
            if len(entity.text) > 2 and entity.text != entity.text.lower():
                names.setdefault(entity.text, replace(entity, spans=()))
        title = _QUALIFIER.sub("", passage.title).strip()
        if len(title) > 2:
            names.setdefault(title, Entity(title, (), kind="title", source=self.name, aliases=(passage.title,)))

    def names_of(self, passage: Passage) -> Mapping[str, Entity]:
        """What :meth:`learn` made of the page of this passage, all of it that may stand in its text."""
        return self._page_names.get(page_of(passage), {})

    def _redirects(self, title: str) -> tuple[str, ...]:
        """Titles that redirect to ``title``, without bracketed qualifiers."""
        forms = dict.fromkeys((title, title[:1].upper() + title[1:]))
        return tuple(_QUALIFIER.sub("", alias).strip() for form in forms for alias in self._aliases.get(form, ()))

    def _synonyms(self, text: str, targets: Iterable[str]) -> tuple[str, ...]:
        """Other names of what ``text`` links to, where the link names its target.

        Authors also link "Iran" to "Afghans in Iran" and "cede their claims" to "State cession": those are no
        synonyms. A target counts where it is the same name, a redirect says so, ``text`` is its initials, or it is a
        full name that ends in ``text`` ("Lincoln" for "Abraham Lincoln").
        """
        found: dict[str, None] = {}
        for target in dict.fromkeys((text, *targets)):
            name = _QUALIFIER.sub("", target).strip()
            redirects = self._redirects(target)
            if fold(name) == fold(text) or text in redirects or _is_short_for(text, name):
                found.update(dict.fromkeys((name, *redirects)))
        return tuple(alias for alias in found if len(alias) > 1 and fold(alias) != fold(text))

    def _links(self, passage: Passage) -> Iterator[Entity]:
        """The reader's links, trimmed; their ``aliases`` are link targets."""
        for entity in passage.entities:
            by_text: dict[str, list[tuple[int, int]]] = {}
            for span in entity.spans:
                start, end = trim(passage.text, *span)
                if start < end:
                    by_text.setdefault(passage.text[start:end], []).append((start, end))
            for text, places in by_text.items():
                yield replace(entity, text=text, spans=tuple(places), source=self.name)

    def _with_synonyms(self, entity: Entity) -> Entity:
        return replace(entity, aliases=self._synonyms(entity.text, entity.aliases))

    def find(self, passage: Passage) -> tuple[Entity, ...]:
        """See :class:`EntityFinder`."""
        found: dict[str, Entity] = {}
        for entity in map(self._with_synonyms, self._links(passage)):
            known = found.setdefault(entity.text, replace(entity, spans=()))
            found[entity.text] = replace(known, spans=(*known.spans, *entity.spans))
        for text, entity in self.names_of(passage).items():
            if text not in found and text in passage.text:
                found[text] = self._with_synonyms(entity)
        return tuple(merge_spans(passage.text, found.values()))

    def find_many(self, passages: Sequence[Passage]) -> Iterator[tuple[Entity, ...]]:
        """See :class:`EntityFinder`."""
        return map(self.find, passages)

    def limits(self) -> str:
        """See :class:`EntityFinder`."""
        return "links: sees only what the authors linked (dates and amounts seldom are), and exact repetitions of it"


def merge_spans(text: str, entities: Iterable[Entity]) -> list[Entity]:
    """Add exact re-mentions in ``text``; where two entities overlap the given span wins, then the longer surface.

    Entities left without a span are dropped; the rest comes in the order of first spans.
    """
    taken: list[tuple[int, int]] = []
    kept: dict[str, tuple[Entity, list[tuple[int, int]]]] = {}

    def claim(entity: Entity, span: tuple[int, int]) -> None:
        if all(span[1] <= start or end <= span[0] for start, end in taken):
            taken.append(span)
            kept.setdefault(entity.text, (entity, []))[1].append(span)

    ordered = sorted(entities, key=lambda entity: (-len(entity.text), entity.text))
    for entity in ordered:
        for span in entity.spans:
            claim(entity, span)
    for entity in ordered:
        for span in occurrences(text, entity.text):
            if text[span[0] : span[1]] == entity.text:
                claim(entity, span)
    merged = [replace(entity, spans=tuple(sorted(spans))) for entity, spans in kept.values()]
    return sorted(merged, key=lambda entity: entity.spans)


def unfit(text: str, settings: EntitySettings, headings: int = 0) -> str | None:
    """Why a surface can be neither hidden nor asked for, or None.

    ``headings``: number of passages of a document, whose headings "Document 1:", "Document 2:"... would give it away.
    The reasons are ``short``, ``long``, ``digit``, ``stopword``, ``mask token`` and ``heading``.
    """
    surface = " ".join(text.split())
    key = fold(surface)
    if len(surface) < 2 or not any(char.isalnum() for char in surface):
        return "short"
    if len(surface) > MAX_CHARS or len(surface.split()) > settings.max_words:
        return "long"
    if sum(char.isalnum() for char in surface) == 1 and any(char.isdigit() for char in surface):
        return "digit"
    if key in STOPWORDS:
        return "stopword"
    if any(token in surface or survives(token, surface) for token in (MASK_TOKEN, TARGET_TOKEN)):
        return "mask token"
    number = re.fullmatch(r"(?:document)? ?(\d*):?", key)
    if number and (not number[1] or int(number[1]) <= headings):
        return "heading"
    return None


def hideable(entity: Entity, passage: Passage, settings: EntitySettings, headings: int = 0) -> bool:
    """Whether ``entity`` of the pivot ``passage`` may be hidden: fit as a surface and not too often there."""
    if unfit(entity.text, settings, headings) is not None:
        return False
    return 1 <= count_occurrences(passage.text, entity.text) <= settings.max_occurrences
