"""Entities of an installed spaCy pipeline (extra ``spacy``), the published choice; every entity type is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from memtrain.errors import UserError
from memtrain.types import Entity, Passage

_NEEDED = {"tok2vec", "transformer", "curated_transformer", "ner", "beam_ner", "entity_ruler"}


class SpacyFinder:
    """spaCy's named entities; only the components they need are loaded."""

    BATCH = 64

    def __init__(self, pipeline: str) -> None:
        """Load ``pipeline`` (an installed package or a folder).

        Raises :class:`UserError` where spaCy or the pipeline is missing, or the pipeline knows no entities.
        """
        try:
            import spacy
        except ImportError as error:
            raise UserError(
                f"key 'entities.finder' is 'spacy:{pipeline}', which needs spaCy ({error}): pip install "
                "'memtrain[spacy]' "
                'and a pipeline, or use "rules"'
            ) from None
        try:
            self._nlp: Any = spacy.load(pipeline)
        except (OSError, ImportError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"key 'entities.finder': cannot load the spaCy pipeline {pipeline!r} ({reason}); install it with "
                f'"python -m spacy download {pipeline}", give its folder, or use "rules"'
            ) from None
        for component in list(self._nlp.pipe_names):
            if component not in _NEEDED:
                self._nlp.remove_pipe(component)
        if not {"ner", "beam_ner", "entity_ruler"} & set(self._nlp.pipe_names):
            raise UserError(
                f"key 'entities.finder': the spaCy pipeline {pipeline!r} finds no entities (no \"ner\" component); "
                'name one that does, or use "rules"'
            )
        self.name = f"spacy:{pipeline}"

    def find(self, passage: Passage) -> tuple[Entity, ...]:
        """See :class:`memtrain.corpus.entities.EntityFinder`."""
        return next(self.find_many((passage,)))

    def find_many(self, passages: Sequence[Passage]) -> Iterator[tuple[Entity, ...]]:
        """See :class:`memtrain.corpus.entities.EntityFinder`."""
        from memtrain.corpus.entities import trim

        for doc in self._nlp.pipe((passage.text for passage in passages), batch_size=self.BATCH):
            spans: dict[str, list[tuple[int, int]]] = {}
            kinds: dict[str, str] = {}
            for ent in doc.ents:
                start, end = trim(doc.text, ent.start_char, ent.end_char)
                if start < end:
                    text = doc.text[start:end]
                    spans.setdefault(text, []).append((start, end))
                    kinds.setdefault(text, ent.label_)
            yield tuple(
                Entity(text, tuple(places), kind=kinds[text], source=self.name) for text, places in spans.items()
            )

    def limits(self) -> str:
        """See :class:`memtrain.corpus.entities.EntityFinder`."""
        return f"{self.name}: knows the languages and the entity types that this pipeline was trained on"
