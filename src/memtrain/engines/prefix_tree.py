"""Common prefixes of token sequences, found from the token ids alone.

Memory-agent batches are full of them: the G trajectories of a group read the same chunk, and all of them answer the
same probe about the same masked chunk (design: "shared prefixes"). A tree is kept as a flat list of segments in
depth-first order, so that the packed sequence is simply the concatenation of the segments' tokens, and all that stands
below a segment follows it without a gap. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

PASS_TOKENS = 256
"""What one more forward and backward pass costs besides its tokens, in tokens: every weight's gradient is added up."""


@dataclass
class Segment:
    """A run of tokens that one or more sequences have in common; its context is its chain of ancestors."""

    tokens: tuple[int, ...]
    """The run itself; never empty."""
    parent: int
    """Index of the segment that stands before it, -1 for a root; always smaller than its own index."""
    start: int
    """Position of the first token in its sequences (= summed length of its ancestors)."""
    offset: int = 0
    """Index of the first token in the packed sequence."""


@dataclass
class PrefixTree:
    """Segments, and for every sequence the segments it runs through."""

    segments: list[Segment] = field(default_factory=list)
    paths: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Sequence number -> indices of its segments, root first; empty for an empty sequence."""

    @property
    def n_tokens(self) -> int:
        """Length of the packed sequence."""
        return sum(len(segment.tokens) for segment in self.segments)

    def ancestors(self, index: int) -> list[int]:
        """Segments before segment ``index``, root first, without itself."""
        chain = []
        parent = self.segments[index].parent
        while parent >= 0:
            chain.append(parent)
            parent = self.segments[parent].parent
        return chain[::-1]

    def packed_indices(self, sequence: int, first: int, last: int) -> list[int]:
        """Where positions ``first..last-1`` of a sequence lie in the packed sequence."""
        found: list[int] = []
        for index in self.paths[sequence]:
            segment = self.segments[index]
            low, high = max(first, segment.start), min(last, segment.start + len(segment.tokens))
            found.extend(range(segment.offset + low - segment.start, segment.offset + high - segment.start))
        if len(found) != max(last - first, 0):
            raise IndexError(f"positions {first}..{last} are not all in sequence {sequence}")
        return found


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix, by halving: slices compare at C speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def build_prefix_tree(sequences: Sequence[Sequence[int]], min_shared: int = 16) -> PrefixTree:
    """Merge sequences that share at least ``min_shared`` further tokens.

    Every sequence keeps its number in ``paths``. Short overlaps are not worth a segment of their own: each segment is
    one more attention call.
    """
    tree = PrefixTree()
    rows = [tuple(sequence) for sequence in sequences]
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    shared = [common_prefix(rows[a], rows[b]) for a, b in pairwise(order)]

    def grow(low: int, high: int, depth: int, parent: int, path: tuple[int, ...]) -> None:
        """Place the sorted sequences ``low..high-1``, which agree on their first ``depth`` tokens."""
        start = low
        while start < high:
            end = start + 1
            while end < high and shared[end - 1] >= depth + min_shared:
                end += 1
            # A run of one is a leaf; a longer run shares a stem as long as its weakest link.
            cut = min(shared[start : end - 1], default=len(rows[order[start]]))
            tokens = rows[order[start]][depth:cut]
            here, below = parent, path
            if tokens:
                here = len(tree.segments)
                tree.segments.append(Segment(tokens, parent, depth))
                below = (*path, here)
            if end - start == 1:
                tree.paths[order[start]] = below
            else:
                ended = start  # sequences that end exactly at the cut sort first
                while ended < end and len(rows[order[ended]]) == cut:
                    tree.paths[order[ended]] = below
                    ended += 1
                if ended < end:
                    grow(ended, end, cut, here, below)
            start = end

    grow(0, len(rows), 0, -1, ())
    offset = 0
    for segment in tree.segments:
        segment.offset = offset
        offset += len(segment.tokens)
    return tree


def pack_by_budget(sequences: Sequence[Sequence[int]], budget: int, min_shared: int = 16) -> list[list[int]]:
    """Split sequence numbers into batches whose prefix trees hold at most ``budget`` tokens each.

    Neighbours in sorted order share most, so batches are runs of that order, cut where the least is shared: what is
    cut apart runs its common prefix twice. A single sequence longer than the budget is a batch of its own.
    """
    rows = [tuple(sequence) for sequence in sequences]
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    # A stem ends at its weakest link, which may lie up to ``min_shared - 1`` tokens below the one between neighbours.
    added = [len(rows[number]) for number in order]
    for place, (one, other) in enumerate(pairwise(order), 1):
        added[place] -= max(0, common_prefix(rows[one], rows[other]) - min_shared + 1)
    before = [0, *accumulate(added)]
    # least[k]: cost of the first k sequences, cut at best; start[k]: where their last batch begins.
    least, start = [0], [0]
    for end in range(1, len(order) + 1):
        options = list[tuple[int, int]]()
        for begin in reversed(range(end)):
            tokens = len(rows[order[begin]]) + before[end] - before[begin + 1]
            if options and tokens > budget:
                break
            options.append((least[begin] + tokens + PASS_TOKENS, begin))
        cost, begin = min(options)
        least.append(cost)
        start.append(begin)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[start[end] : end])
        end = start[end]
    return batches[::-1]
