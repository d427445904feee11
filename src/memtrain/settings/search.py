"""Settings of search QA: the searcher agent, and where its results come from.

Defaults are MemTrain's published search QA set-up (arXiv 2606.03197), which is MEM1's (arXiv 2506.15841) with the
retriever of Search-R1 (arXiv 2503.09516): two questions at once, six turns, three passages a search, 1k tokens each for
a reply and for the results. Steps and learning rate (200, 5e-7) belong to ``qa.train``.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from memtrain.settings.base import Section


class SearchSettings(Section):
    """The searcher: turns, budgets, retriever."""

    max_turns: int = Field(6, ge=1)
    """Most turns of an episode, the answer among them; in the last one only an answer counts."""
    questions_at_once: int = Field(2, ge=1)
    """Questions of one episode; its reward is their mean."""
    topk: int = Field(3, ge=1, le=100)
    """Passages a search gives."""
    turn_tokens: int = Field(1024, ge=8)
    """Most new tokens of a turn: thoughts, memory and action."""
    result_tokens: int = Field(1024, ge=8)
    """Results longer than this are cut."""
    memory_tokens: int = Field(1024, ge=1)
    """A longer memory is cut."""
    index: str = "bm25"
    """Search in this process: ``bm25``, or ``dense:MODEL`` (extra ``dense``; a sentence-transformers name or
    folder)."""
    url: str = ""
    """A server of the Search-R1 contract instead, for example ``http://127.0.0.1:8000`` (``memtrain search-server``);
    empty: the index in this process, over ``qa.passages``."""
    timeout: float = Field(30.0, gt=0)
    """Seconds for one try of a request to the server."""
    retries: int = Field(3, ge=0)
    """Further tries of a request that failed, after pauses that double."""
    connections: int = Field(16, ge=1)
    """Most requests to the server at a time."""
    max_failed_share: float = Field(0.5, ge=0, le=1)
    """Training stops where a larger share of a step's searches failed; 1: never."""
    probes: int = Field(0, ge=0)
    """Recall probes a trajectory: an entity of an earlier result, asked of a later memory; weight and reward as in
    ``tasks`` (published: none)."""

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError('must begin with http:// or https://, for example "http://127.0.0.1:8000"')
        return url

    @field_validator("index")
    @classmethod
    def _a_known_index(cls, index: str) -> str:
        if (index != "bm25" and not index.removeprefix("dense:").strip()) or not index.startswith(("bm25", "dense:")):
            raise ValueError('use "bm25" or "dense:MODEL"')
        return index
