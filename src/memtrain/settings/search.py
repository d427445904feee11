"""Settings of search QA: the searcher agent, and where its results come from."""

from __future__ import annotations

from memtrain.settings.base import Section


class SearchSettings(Section):
    """The searcher: turns, budgets, retriever."""
