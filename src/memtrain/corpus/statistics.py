"""What a build of training documents tells about itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memtrain.types import TrainingDocument


@dataclass
class SplitStatistics:
    """Counts over the documents of one split."""

    passages: int = 0
    """Passages they are drawn from."""
    documents: int = 0
    tokens: int = 0
    """Sum over the documents."""
    min_tokens: int = 0
    max_tokens: int = 0
    mentions: int = 0
    """Sum over the documents of the entities that recall probes may ask for."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Kind of the hidden entity -> documents."""
    mention_kinds: dict[str, int] = field(default_factory=dict)
    """Kind of mention -> how many."""
    masks: dict[str, int] = field(default_factory=dict)
    """Number of masks in a document (as text: these are JSON keys) -> documents."""
    pivots: int = 0
    """Different pivot passages."""
    answers: int = 0
    """Different hidden entities."""
    drops: dict[str, int] = field(default_factory=dict)
    """Reason -> draws that gave no document and were repeated."""
    seconds: float = 0.0
    _seen_pivots: set[str] = field(default_factory=set, repr=False)
    _seen_answers: set[str] = field(default_factory=set, repr=False)

    def add(self, document: TrainingDocument) -> None:
        """Count one document."""
        self.min_tokens = min(self.min_tokens or document.n_tokens, document.n_tokens)
        self.max_tokens = max(self.max_tokens, document.n_tokens)
        self.documents += 1
        self.tokens += document.n_tokens
        self.mentions += len(document.mentions)
        _count(self.kinds, document.answer_kind)
        _count(self.masks, str(document.n_masks))
        for kind, number in Counter(mention.kind for mention in document.mentions).items():
            _count(self.mention_kinds, kind, number)
        self._seen_pivots.add(document.pivot_id)
        self._seen_answers.add(document.answer)
        self.pivots, self.answers = len(self._seen_pivots), len(self._seen_answers)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the sets."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}

    def lines(self, name: str) -> list[str]:
        """For a person."""
        if not self.documents:
            return [f"{name}: no documents"]
        rate = f"{self.documents / self.seconds:,.1f} documents/s" if self.seconds else "no time measured"
        masks = {int(key): value for key, value in self.masks.items()}
        mean_masks = sum(number * count for number, count in masks.items()) / self.documents
        drops = ", ".join(f"{reason} {count:,}" for reason, count in self.drops.items()) or "none"
        return [
            f"{name}: {self.documents:,} documents from {self.passages:,} passages, {rate}",
            f"  tokens      {self.tokens:,}: {self.tokens / self.documents:,.0f} a document "
            f"({self.min_tokens:,} to {self.max_tokens:,})",
            f"  hidden      {self.answers:,} different entities in {self.pivots:,} pivots: {_shares(self.kinds)}",
            f"  masks       {mean_masks:.1f} a document: {_histogram(masks)}",
            f"  mentions    {self.mentions / self.documents:,.0f} a document: {_shares(self.mention_kinds)}",
            f"  drawn again {drops}",
        ]


@dataclass
class BuildReport:
    """Everything printed after a build, and kept in its manifest."""

    folder: Path
    corpus: str = ""
    pages: int = 0
    passages: int = 0
    unusable: int = 0
    """Passages left out because they spell a mask token themselves."""
    read_summary: str = ""
    finder: str = ""
    finder_limits: str = ""
    tokenizer: str = ""
    estimate: bool = False
    """Token counts are an estimate, because no tokenizer was at hand."""
    seconds: float = 0.0
    """Whole build, reading included."""
    reused: bool = False
    """Nothing was done: the folder held this very build."""
    splits: dict[str, SplitStatistics] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        own = {key: value for key, value in vars(self).items() if key not in ("folder", "reused", "splits")}
        return {**own, "splits": {name: split.to_json() for name, split in self.splits.items()}}

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any], folder: Path, reused: bool) -> BuildReport:
        """What :meth:`to_json` wrote."""
        data = dict(manifest["report"])
        splits = {name: SplitStatistics(**split) for name, split in data.pop("splits").items()}
        return cls(folder=folder, reused=reused, splits=splits, **data)

    def lines(self) -> list[str]:
        """For a person: one fact a line."""
        head = f"documents in {self.folder}" + (" (finished before, used again)" if self.reused else "")
        unusable = f", {self.unusable} left out that spell a mask token" if self.unusable else ""
        counted = f"{self.tokenizer}{' (estimate: no tokenizer at hand)' if self.estimate else ''}"
        lines = [
            head,
            f"corpus {self.corpus}: {self.read_summary}{unusable}",
            f"entities by {self.finder_limits}",
            f"tokens counted by {counted}; built in {self.seconds:.1f} s",
        ]
        for name, split in self.splits.items():
            lines += split.lines(name)
        return lines


def _count(counts: dict[str, int], key: str, number: int = 1) -> None:
    counts[key] = counts.get(key, 0) + number


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values()) or 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {100 * count / total:.0f}%" for kind, count in ordered) or "none"


def _histogram(masks: dict[int, int]) -> str:
    """Documents by number of masks, in bins that double."""
    bins = [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 10**9)]
    parts = []
    for low, high in bins:
        count = sum(value for number, value in masks.items() if low <= number <= high)
        if count:
            label = str(low) if low == high else f"{low}+" if high == 10**9 else f"{low}-{high}"
            parts.append(f"{label}: {count}")
    return ", ".join(parts)
