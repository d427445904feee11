"""Rollouts: prefill each distinct prefix once, then decode all sequences together.

Shapes: B slots (groups x members), V vocabulary, P prefix length, S own length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from memtrain.engines.prefix_tree import PrefixTree, build_prefix_tree, pack_by_budget
from memtrain.engines.torch.attention import DecodePlan, planned
from memtrain.engines.torch.forward import run_tree
from memtrain.engines.torch.model import LoadedModel
from memtrain.types import Completion, SamplingParams

MIN_SHARED = 16
"""Prefixes shorter than this are copied, not shared."""
PREFILL_TOKENS = 16_384
"""Most tokens in one prefill pass."""


@dataclass(frozen=True)
class Request:
    """One completion that is wanted."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams


@dataclass
class _Slot:
    """A sequence while it decodes."""

    number: int
    """Index of its request."""
    tokens: list[int]
    logprobs: list[float]
    done: bool = False
    stopped: bool = False


@torch.no_grad()
def sample_batch(
    loaded: LoadedModel,
    requests: Sequence[Request],
    end_ids: frozenset[int],
    generator: torch.Generator,
    on_done: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Sample one completion a request. ``on_done(n)`` is told when n more have finished.

    Requests with one temperature and top_p run together; stop texts are checked on the decoded tail.
    """
    prompts = [request.prompt_ids for request in requests]
    limit = max(request.params.max_tokens for request in requests)
    plan, order, members = _prefill(loaded, prompts, limit)
    slots = [_Slot(max(number, 0), [], [], done=number < 0) for number in order]
    params = [requests[slot.number].params for slot in slots]
    temperature = torch.tensor([p.temperature for p in params], device=loaded.device)
    top_p = torch.tensor([p.top_p for p in params], device=loaded.device)
    last = torch.tensor([[prompts[slot.number][-1]] for slot in slots], device=loaded.device)
    prefix_B = plan.prefix_lengths_G.repeat_interleave(members)
    for _ in range(limit):
        plan.begin_step()
        # Slots that are done run on beside the others; a table of absolute positions may end before they do.
        positions = (prefix_B + plan.own_lengths_B)[:, None].clamp_(max=loaded.context_tokens - 1)
        with planned(plan):
            hidden = loaded.decoder(input_ids=last, position_ids=positions, use_cache=False).last_hidden_state
        plan.end_step()
        tokens, logprobs = draw(loaded.logits(hidden[:, 0]), temperature, top_p, generator)
        finished = _append(loaded, slots, params, tokens.tolist(), logprobs.tolist(), end_ids)
        if finished and on_done is not None:
            on_done(finished)
        if all(slot.done for slot in slots):
            break
        last = tokens[:, None]
    by_request = {slot.number: slot for slot, number in zip(slots, order, strict=True) if number >= 0}
    return [
        Completion(tuple(s.tokens), tuple(s.logprobs), "stop" if s.stopped else "length")
        for s in (by_request[number] for number in range(len(requests)))
    ]


def _append(
    loaded: LoadedModel,
    slots: list[_Slot],
    params: list[SamplingParams],
    tokens: list[int],
    logprobs: list[float],
    end_ids: frozenset[int],
) -> int:
    finished = 0
    for slot, param, token, logprob in zip(slots, params, tokens, logprobs, strict=True):
        if slot.done:
            continue
        slot.tokens.append(token)
        slot.logprobs.append(logprob)
        slot.stopped = token in end_ids or (bool(param.stop) and _ends_with_stop(loaded, slot.tokens, param.stop))
        slot.done = slot.stopped or len(slot.tokens) >= param.max_tokens
        finished += slot.done
    return finished


def _ends_with_stop(loaded: LoadedModel, tokens: list[int], stop: tuple[str, ...]) -> bool:
    # A token may be a single byte; the margin is for one that began before the stop text.
    tail = loaded.tokenizer.decode(tokens[-(max(len(text.encode()) for text in stop) + 4) :])
    return any(text in tail for text in stop)


def _group_by_stem(tree: PrefixTree, count: int) -> list[list[int]]:
    """Requests that share their first segment, largest groups cut so that no group dwarfs the others."""
    stems: dict[int, list[int]] = {}
    for number in range(count):
        path = tree.paths[number]
        stems.setdefault(path[0] if path else -1 - number, []).append(number)
    groups = list(stems.values())
    # Every group is padded to the largest; cutting to the median keeps the padding below the work.
    size = sorted(len(group) for group in groups)[len(groups) // 2]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


@dataclass
class _Stem:
    """A group of slots, what all of them share and what each has of its own, as segments of one prefix tree."""

    members: list[int]
    """Request numbers."""
    shared: tuple[int, ...]
    """Segments kept once for the group."""
    own: list[tuple[int, ...]]
    """Segments of each member after the shared ones."""


def _stems(tree: PrefixTree, numbers: Sequence[int]) -> list[_Stem]:
    """Groups of a tree whose sequence i is request ``numbers[i]``."""
    stems = []
    for group in _group_by_stem(tree, len(numbers)):
        paths = [tree.paths[i] for i in group]
        depth = 0
        while all(len(path) > depth for path in paths) and len({path[depth] for path in paths}) == 1:
            depth += 1
        depth = depth if len(group) > 1 else 0  # a group of one gains nothing from a prefix of its own
        stems.append(_Stem([numbers[i] for i in group], paths[0][:depth], [path[depth:] for path in paths]))
    return stems


def _prefill(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], limit: int) -> tuple[DecodePlan, list[int], int]:
    """Run every distinct prefix once and lay keys and values out for decoding: what a group shares is kept once.

    Returns the plan, the request number of every slot (-1 where a group is filled up), and the slots a group.
    """
    device = loaded.device
    # The last prompt token is fed in the first decoding step, so the prefill needs no logits at all.
    bodies = [prompt[:-1] for prompt in prompts]
    forest = []
    for numbers in pack_by_budget(bodies, PREFILL_TOKENS, MIN_SHARED):
        tree = build_prefix_tree([bodies[number] for number in numbers], MIN_SHARED)
        forest.append((tree, _stems(tree, numbers)))
    stems = [stem for _, group in forest for stem in group]
    members = max(len(stem.members) for stem in stems)

    def length(tree: PrefixTree, path: tuple[int, ...]) -> int:
        return sum(len(tree.segments[index].tokens) for index in path)

    prefix_lengths = [length(tree, stem.shared) for tree, group in forest for stem in group]
    own_lengths = []
    for tree, group in forest:
        for stem in group:
            own = [length(tree, path) for path in stem.own]
            own_lengths += own + [0] * (members - len(own))
    prefix_max, own_max = max(prefix_lengths), max(own_lengths)
    prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    own_parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    first = 0
    for tree, group in forest:
        kept = run_tree(loaded, tree, keep=True)[1].kept if tree.segments else _empty_kept(loaded)
        index_prefix = _gather_index(tree, [stem.shared for stem in group], prefix_max, device)
        paths = [path for stem in group for path in (*stem.own, *[()] * (members - len(stem.own)))]
        index_own = _gather_index(tree, paths, own_max, device)
        for layer, (keys, values) in kept.items():
            if layer not in prefix:
                prefix[layer] = _empty_pair(keys, len(stems), prefix_max)
                own_parts[layer] = _empty_pair(keys, len(stems) * members, own_max + limit + 1)
            for target, packed in zip(prefix[layer], (keys, values), strict=True):
                _lay_out(packed, index_prefix, target[first : first + len(group)])
            for target, packed in zip(own_parts[layer], (keys, values), strict=True):
                _lay_out(packed, index_own, target[first * members : (first + len(group)) * members])
        first += len(group)
    bias = None
    lengths_G = torch.tensor(prefix_lengths, device=device)
    if min(prefix_lengths) < prefix_max:
        dead = torch.arange(prefix_max, device=device)[None, :] >= lengths_G[:, None]
        bias = torch.zeros(dead.shape, device=device).masked_fill_(dead, float("-inf"))[:, None, None]
    plan = DecodePlan(prefix, own_parts, lengths_G, torch.tensor(own_lengths, device=device), bias_prefix=bias)
    order = [number for stem in stems for number in (*stem.members, *[-1] * (members - len(stem.members)))]
    return plan, order, members


def _gather_index(
    tree: PrefixTree, paths: Sequence[tuple[int, ...]], length: int, device: torch.device
) -> torch.Tensor:
    """(rows, length) packed indices of each path's tokens, padded with 0."""
    rows = []
    for path in paths:
        segments = [tree.segments[index] for index in path]
        found = [i for s in segments for i in range(s.offset, s.offset + len(s.tokens))]
        rows.append(found + [0] * (length - len(found)))
    return torch.tensor(rows, device=device, dtype=torch.long).view(len(paths), length)


def _empty_pair(like: torch.Tensor, rows: int, room: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (rows, like.shape[1], room, like.shape[3])
    return like.new_zeros(shape), like.new_zeros(shape)


def _lay_out(packed: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> None:
    """Copy (1, K, N, D) at the packed indices (rows, L) to the first L places of (rows, K, room, D)."""
    _, kv_heads, _, size = packed.shape
    if index.shape[1]:
        filled = packed[0][:, index.flatten()].view(kv_heads, *index.shape, size)
        target[:, :, : index.shape[1]] = filled.transpose(0, 1)


def _empty_kept(loaded: LoadedModel) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Shapes of keys and values for one-token prompts: run a token and drop it."""
    tree = build_prefix_tree([[0]])
    _, packed = run_tree(loaded, tree, keep=True)
    return {layer: (k[:, :, :0], v[:, :, :0]) for layer, (k, v) in packed.kept.items()}


def draw(
    logits: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one token a row: (B, V) -> tokens (B,), log-probs (B,) float32 under the sampling distribution.

    Inverse transform sampling: one uniform number a row and a cumulative sum, instead of noise for every logit.
    A temperature of 0 takes the largest logit and reports its log-prob at temperature 1.
    """
    logits = logits.float()
    greedy = temperature_B == 0
    if bool((temperature_B != 1).any()):
        logits = logits / torch.where(greedy, 1.0, temperature_B)[:, None]
    if bool((top_p_B < 1).any()):
        logits = _keep_nucleus(logits, top_p_B)
    top = logits.amax(-1, keepdim=True)
    mass = (logits - top).exp_()
    cumulative = mass.cumsum(-1, dtype=torch.float64 if logits.device.type == "cpu" else torch.float32)
    total = cumulative[:, -1:]
    # Drawn on the CPU so that one seed gives one stream on every device.
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(total)
    # Rounded to float32 it may become 1, which lies behind the last token that has any mass.
    uniform.clamp_(max=1 - torch.finfo(total.dtype).eps / 2)
    tokens = torch.searchsorted(cumulative, uniform * total, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)
    if bool(greedy.any()):
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return tokens, chosen - top[:, 0] - total[:, 0].log().float()


def _keep_nucleus(logits: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Set logits outside the smallest set with mass top_p to -inf."""
    ordered, index = logits.sort(-1, descending=True)
    probs = ordered.softmax(-1)
    # A token is out when the mass before it already reaches top_p; the first always stays.
    out = probs.cumsum(-1) - probs >= top_p_B[:, None]
    return logits.masked_fill(torch.zeros_like(out).scatter(1, index, out), float("-inf"))
