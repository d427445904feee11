"""From prompts to slots that can decode: who shares a prefix, one pass over all that is new, keys laid out.

Shapes: G prefix rows, B slots, K key-value heads, D head size, N packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memtrain.engines.prefix_tree import build_prefix_tree, pack_by_budget
from memtrain.engines.torch.decode_attention import LayerCache
from memtrain.engines.torch.forward import run_tree
from memtrain.engines.torch.model import LoadedModel
from memtrain.engines.torch.native import decode as native

PREFILL_TOKENS = 16_384
"""Most tokens in one prefill pass."""


@dataclass(frozen=True)
class Unit:
    """Prompts that decode side by side on one prefix, which is kept once for all of them."""

    members: tuple[int, ...]
    """Prompt numbers."""
    shared: int
    """Tokens they have in common and keep once; 0 for a prompt by itself."""


def plan_units(bodies: Sequence[tuple[int, ...]], most: int, min_shared: int) -> list[Unit]:
    """Split prompts into units of at most ``most`` members such that the fewest tokens are kept.

    Where all documents share the instructions and each group its chunk, one prefix of instructions for everybody would
    keep the chunk once a slot: the cut through the prefix tree is chosen by what it keeps.
    """
    tree = build_prefix_tree(bodies, min_shared)
    ends = [list[int]() for _ in tree.segments]
    loose = list[int]()
    for number in range(len(bodies)):
        (ends[tree.paths[number][-1]] if tree.paths[number] else loose).append(number)
    children = [list[int]() for _ in tree.segments]
    roots = list[int]()
    for index, segment in enumerate(tree.segments):
        (children[segment.parent] if segment.parent >= 0 else roots).append(index)
    below = [list[int]() for _ in tree.segments]
    kept = [0] * len(tree.segments)
    whole = [False] * len(tree.segments)
    for index in reversed(range(len(tree.segments))):  # children come after their parents
        segment = tree.segments[index]
        below[index] = ends[index] + [number for child in children[index] for number in below[child]]
        depth = segment.start + len(segment.tokens)
        apart = sum(len(bodies[n]) for n in ends[index]) + sum(kept[child] for child in children[index])
        together = depth + sum(len(bodies[n]) - depth for n in below[index])
        whole[index] = len(below[index]) > 1 and together <= apart
        kept[index] = together if whole[index] else apart
    units = [Unit((number,), 0) for number in loose]

    def collect(index: int) -> None:
        if whole[index]:
            segment = tree.segments[index]
            members, depth = sorted(below[index]), segment.start + len(segment.tokens)
            units.extend(Unit(tuple(members[i : i + most]), depth) for i in range(0, len(members), most))
            return
        units.extend(Unit((number,), 0) for number in ends[index])
        for child in children[index]:
            collect(child)

    for root in roots:
        collect(root)
    return sorted(units, key=lambda unit: unit.members[0])


def rows_at_once(units: Sequence[Unit], slots: int) -> int:
    """How many prefixes to keep room for: twice the smallest units that fill the slots.

    A unit holds its prefix until its last member is done, and by then others may have taken the places of the rest.
    """
    rows, room = 0, slots
    for size in sorted(len(unit.members) for unit in units if unit.shared):
        if size > room:
            break
        rows, room = rows + 1, room - size
    return min(2 * rows, sum(unit.shared > 0 for unit in units))


@dataclass
class Pool:
    """Preallocated keys and values: ``rows`` prefixes of ``prefix_room`` tokens, slots of ``own_room`` tokens."""

    slots: int
    rows: int
    prefix_room: int
    own_room: int
    layers: dict[int, LayerCache]

    @classmethod
    def of(cls, loaded: LoadedModel, slots: int, rows: int, prefix_room: int, own_room: int) -> Pool:
        """An empty pool in the model's own shapes."""
        shapes = cache_shapes(loaded)
        by_row = all(native.usable(keys, values) for keys, values in shapes.values())
        layers = {
            layer: LayerCache.zeros(keys, values, slots, own_room, rows, prefix_room, by_row)
            for layer, (keys, values) in shapes.items()
        }
        return cls(slots, rows, prefix_room, own_room, layers)

    def grown(self, loaded: LoadedModel, slots: int, rows: int, prefix_room: int, own_room: int) -> Pool:
        """A pool of at least this size with the same contents in its first places."""
        pool = Pool.of(loaded, slots, rows, prefix_room, own_room)
        for layer, old in self.layers.items():
            for mine, theirs in zip(pool.layers[layer], old, strict=True):
                a, b, c, d = theirs.shape
                mine[:a, :b, :c, :d] = theirs
        return pool

    def keep_slots(self, slots: Sequence[int]) -> None:
        """Leave only these slots, in this order."""
        for layer, cache in self.layers.items():
            self.layers[layer] = cache.keep_slots(torch.tensor(slots, device=cache.own_k.device))
        self.slots = len(slots)


def cache_shapes(loaded: LoadedModel) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> keys and values of no tokens, in the model's shapes and type, which a one-token pass tells once."""
    if not loaded.no_keys:
        kept = run_tree(loaded, build_prefix_tree([[0]]), keep=True)[1].kept
        loaded.no_keys.update({layer: (keys[:, :, :0], values[:, :, :0]) for layer, (keys, values) in kept.items()})
    return loaded.no_keys


def fitting_slots(loaded: LoadedModel, wanted: int, own_room: int, prefix_tokens: int) -> int:
    """How many of the wanted slots fit into the device's free memory; all of them on a CPU, which can swap."""
    if loaded.device.type != "cuda":
        return wanted
    token_bytes = sum(
        x.shape[1] * x.shape[3] * x.element_size() for pair in cache_shapes(loaded).values() for x in pair
    )
    free = torch.cuda.mem_get_info(loaded.device)[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    # A third stays for the prefill's activations and the logits.
    return max(1, min(wanted, int(free * 0.66 / token_bytes - prefix_tokens) // own_room))


def prefill(
    loaded: LoadedModel,
    bodies: dict[int, tuple[int, ...]],
    units: Sequence[Unit],
    pool: Pool,
    rows: Sequence[int],
    slots: dict[int, int],
    min_shared: int,
) -> None:
    """Run every distinct prefix of the units once and lay keys and values out in the pool.

    ``rows`` are the units' prefix rows, ``slots`` each prompt's slot. The last token of a prompt is not in its body: it
    is fed in the first decoding step, so the prefill needs no logits at all.
    """
    numbers = [number for unit in units for number in unit.members]
    of_unit = {number: place for place, unit in enumerate(units) for number in unit.members}
    placed = set[int]()
    for batch in pack_by_budget([bodies[number] for number in numbers], PREFILL_TOKENS, min_shared):
        chosen = [numbers[i] for i in batch]
        tree = build_prefix_tree([bodies[number] for number in chosen], min_shared)
        if not tree.segments:
            continue
        kept = run_tree(loaded, tree, keep=True)[1].kept
        shared, own = _Copies(), _Copies()
        for i, number in enumerate(chosen):
            place = of_unit[number]
            depth = units[place].shared
            packed = tree.packed_indices(i, 0, len(bodies[number]))
            if depth and place not in placed:
                placed.add(place)
                shared.add(packed[:depth], rows[place])
            own.add(packed[depth:], slots[number])
        for layer, (keys, values) in kept.items():
            cache = pool.layers[layer]
            shared.run(keys, values, cache.prefix_k, cache.prefix_v)
            own.run(keys, values, cache.own_k, cache.own_v)


class _Copies:
    """Packed tokens on their way to slots or prefix rows, all in one indexed copy a layer."""

    def __init__(self) -> None:
        self._source: list[int] = []
        self._place: list[int] = []
        self._position: list[int] = []
        self._index: list[torch.Tensor] = []

    def add(self, packed: Sequence[int], place: int) -> None:
        """These packed tokens become the first ones of a place."""
        self._source += packed
        self._place += [place] * len(packed)
        self._position += range(len(packed))

    def run(self, keys: torch.Tensor, values: torch.Tensor, to_k: torch.Tensor, to_v: torch.Tensor) -> None:
        """(1, K, N, D) keys and values into (places, K, D, room) and (places, K, room, D)."""
        if not self._source:
            return
        if not self._index:
            lists = (self._source, self._place, self._position)
            self._index = [torch.tensor(numbers, device=keys.device) for numbers in lists]
        source, place, position = self._index
        to_k[place, :, :, position] = keys[0, :, source].transpose(0, 1)
        to_v[place, :, position] = values[0, :, source].transpose(0, 1)
