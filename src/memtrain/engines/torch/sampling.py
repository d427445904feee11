"""Rollouts: each distinct prefix runs once, all sequences decode together, who is done makes room for who waits.

Shapes: B slots, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from memtrain.engines.torch.attention import planned
from memtrain.engines.torch.decode_attention import DecodePlan, layout
from memtrain.engines.torch.drawing import DrawPlan, draw, uniform
from memtrain.engines.torch.model import LoadedModel
from memtrain.engines.torch.prefill import Pool, Unit, fitting_slots, plan_units, prefill, rows_at_once
from memtrain.engines.torch.sequences import Request, RunningSequence
from memtrain.engines.torch.step_graphs import StepGraphs
from memtrain.engines.torch.stopping import StopMatcher
from memtrain.types import Completion, SamplingParams

MIN_SHARED = 16
"""Prefixes shorter than this are copied, not shared."""
LENGTH_STEP = 64
"""On a GPU own lengths are rounded up to this, so that one graph serves as many steps; so are rooms that grow."""
SLOT_STEP = 8
"""Slots are added by so many."""
WORTH_SHARING = 128
"""Who comes late shares a prefix of at least this length: a shorter one is not worth a place of its own."""


@torch.no_grad()
def sample_batch(
    loaded: LoadedModel,
    requests: Sequence[Request],
    end_ids: frozenset[int],
    generator: torch.Generator,
    deliver: Callable[[int, Completion], None],
    *,
    max_sequences: int = 64,
    min_shared: int = MIN_SHARED,
    arrivals: Callable[[], Sequence[Request]] = tuple,
    abandoned: Callable[[], bool] = lambda: False,
    gone: Callable[[int], bool] = lambda number: False,
    grow: bool = False,
) -> None:
    """Sample one completion a request, at most ``max_sequences`` at a time, and ``deliver`` each when it is done.

    ``arrivals`` is asked before every step for requests that came meanwhile; they are numbered onwards and join: where
    there is room already, or at once with ``grow``, which makes the room (a server's requests come one by one).
    ``gone`` says of a request that nobody waits for it any more; its slot is free from the next step on.
    """
    late = list(enumerate(requests))
    count = len(late)
    while late and not abandoned():
        decoder = _Decoder(loaded, dict(late), end_ids, generator, max_sequences, min_shared, grow)
        late = []
        while decoder.busy and not abandoned():
            new = arrivals()
            late += enumerate(new, count)
            count += len(new)
            decoder.drop(gone)
            late = decoder.make_room(late) if grow else decoder.join(late)
            if not decoder.busy:
                break
            decoder.admit()
            for number in decoder.step():
                deliver(number, decoder.sequences.pop(number).completion)
        new = arrivals()
        late += enumerate(new, count)
        count += len(new)


class _Decoder:
    """Slots in which sequences decode, and the units of prompts that wait for them."""

    def __init__(
        self,
        loaded: LoadedModel,
        requests: dict[int, Request],
        end_ids: frozenset[int],
        generator: torch.Generator,
        max_sequences: int,
        min_shared: int,
        grows: bool,
    ):
        self.loaded, self.end_ids, self.generator, self.min_shared = loaded, end_ids, generator, min_shared
        self.max_sequences, self.grows = max_sequences, grows
        self.on_gpu = loaded.device.type == "cuda"
        self.sequences = {number: RunningSequence(request) for number, request in requests.items()}
        units = self._units(list(requests), max_sequences)
        own_room = max(self._own_room(n, unit.shared) for unit in units for n in unit.members)
        prefix_room = max(unit.shared for unit in units)
        if self.on_gpu:  # for who arrives later with a little more
            own_room, prefix_room = (-(-room // LENGTH_STEP) * LENGTH_STEP for room in (own_room, prefix_room))
        wanted = min(max_sequences, len(requests))
        slots = fitting_slots(loaded, wanted, own_room, prefix_room * rows_at_once(units, wanted))
        self.waiting = deque(units if slots == wanted else self._units(list(requests), slots))
        self.width = max(len(unit.members) for unit in self.waiting)
        """Largest unit."""
        self.pool = Pool.of(loaded, slots, rows_at_once(self.waiting, slots), prefix_room, own_room)
        self.running: list[int | None] = [None] * slots
        """Sequence in each slot."""
        self.row_of = [-1] * slots
        """Prefix row of each slot."""
        self.own_lengths = [0] * slots
        self.prefix_lengths = [0] * self.pool.rows
        self.last_B1 = torch.zeros(slots, 1, dtype=torch.long, device=loaded.device)
        self.matchers: dict[tuple[str, ...], StopMatcher] = {}
        self.graphs = StepGraphs(loaded.device)
        self.plan: DecodePlan | None = None
        self.draw_plan: DrawPlan
        self.active_B: torch.Tensor

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.waiting) or any(number is not None for number in self.running)

    def join(self, requests: list[tuple[int, Request]]) -> list[tuple[int, Request]]:
        """Let later requests wait here too, once enough of them are there to share prefixes; returns who cannot yet.

        Prompts that are too long for this pool's rooms wait for the next one.
        """
        if not requests or self.running.count(None) * 4 < len(self.running):
            return requests
        self.sequences |= {number: RunningSequence(request) for number, request in requests}
        left = set[int]()
        for unit in self._units([number for number, _ in requests], self.width):
            if unit.shared <= self.pool.prefix_room and all(
                self._own_room(n, unit.shared) <= self.pool.own_room for n in unit.members
            ):
                self.waiting.append(unit)
            else:
                left.update(unit.members)
        for number in left:
            del self.sequences[number]
        return [(number, request) for number, request in requests if number in left]

    def make_room(self, requests: list[tuple[int, Request]]) -> list[tuple[int, Request]]:
        """Let later requests wait here with slots of their own, up to the most that may decode together; returns the
        rest. Where there is no room yet, the pool grows: what runs keeps its keys and values, which are copied."""
        active = [slot for slot, number in enumerate(self.running) if number is not None]
        waiting = sum(len(unit.members) for unit in self.waiting)
        taken = requests[: max(0, self.max_sequences - len(active) - waiting)]
        if not taken:
            return requests
        self.sequences |= {number: RunningSequence(request) for number, request in taken}
        units = self._units([number for number, _ in taken], self.max_sequences)
        if any(unit.shared < WORTH_SHARING for unit in units):
            units = [Unit((number,), 0) for number, _ in taken]
        own_room = max(self._own_room(n, unit.shared) for unit in units for n in unit.members)
        prefix_room = max(unit.shared for unit in units)
        rows = len({*self.row_of} - {-1}) + sum(unit.shared > 0 for unit in [*self.waiting, *units])
        slots = len(active) + waiting + len(taken)
        pool = self.pool
        fits = slots <= len(self.running) and rows <= pool.rows
        if not (fits and own_room <= pool.own_room and prefix_room <= pool.prefix_room):
            slots = min(self.max_sequences, -(-slots // SLOT_STEP) * SLOT_STEP)
            own_room, prefix_room = (-(-room // LENGTH_STEP) * LENGTH_STEP for room in (own_room, prefix_room))
            if not self._grow(active, slots, rows, prefix_room, own_room):
                for number, _ in taken:
                    del self.sequences[number]
                return requests
        self.waiting.extend(units)
        self.width = max(self.width, *(len(unit.members) for unit in units))
        return requests[len(taken) :]

    def _grow(self, active: list[int], slots: int, rows: int, prefix_room: int, own_room: int) -> bool:
        """A pool of at least this size with what runs in it; False where the device has no memory for it."""
        rows, prefix_room = max(self.pool.rows, rows), max(self.pool.prefix_room, prefix_room)
        own_room, slots = max(self.pool.own_room, own_room), max(slots, len(self.running))
        if fitting_slots(self.loaded, slots, own_room, prefix_room * rows) < slots:
            return False
        if 0 < len(active) < len(self.running):
            self._keep(active)
        self.pool = self.pool.grown(self.loaded, slots, rows, prefix_room, own_room)
        more = slots - len(self.running)
        self.running += [None] * more
        self.row_of += [-1] * more
        self.own_lengths += [0] * more
        self.prefix_lengths += [0] * (rows - len(self.prefix_lengths))
        self.last_B1 = torch.cat([self.last_B1, self.last_B1.new_zeros(more, 1)])
        return True

    def drop(self, gone: Callable[[int], bool]) -> None:
        """Forget sequences that nobody waits for any more."""
        left = [number for number in self.sequences if gone(number)]
        if not left:
            return
        for number in left:
            del self.sequences[number]
        units = [Unit(tuple(n for n in unit.members if n in self.sequences), unit.shared) for unit in self.waiting]
        self.waiting = deque(unit for unit in units if unit.members)
        for slot, runs in enumerate(self.running):
            if runs is not None and runs not in self.sequences:
                self.running[slot], self.row_of[slot], self.own_lengths[slot] = None, -1, 0
        if self.busy and self.plan is not None:
            self._arrange()

    def admit(self) -> None:
        """Let waiting units into free slots, in order; where nobody waits any more, leave out the free slots."""
        free = [slot for slot, number in enumerate(self.running) if number is None]
        rows = [row for row in range(self.pool.rows) if row not in self.row_of]
        units, unit_rows, slots = list[Unit](), list[int](), dict[int, int]()
        while self.waiting and len(self.waiting[0].members) <= len(free):
            if self.waiting[0].shared and not rows:
                break
            unit = self.waiting.popleft()
            row = rows.pop(0) if unit.shared else -1
            units.append(unit)
            unit_rows.append(row)
            if row >= 0:
                self.prefix_lengths[row] = unit.shared
            for number in unit.members:
                slot = slots[number] = free.pop(0)
                self.running[slot], self.row_of[slot] = number, row
                self.own_lengths[slot] = len(self.sequences[number].body) - unit.shared
        if units:
            bodies = {number: self.sequences[number].body for number in slots}
            prefill(self.loaded, bodies, units, self.pool, unit_rows, slots, self.min_shared)
            last = [self.sequences[number].request.prompt_ids[-1] for number in slots]
            self.last_B1[list(slots.values()), 0] = torch.tensor(last, device=self.last_B1.device)
        # Gathering the caches costs about as much as a step does on an eighth of the slots; a graph costs more, and so
        # does growing again for who comes next.
        worth = 2 if self.on_gpu or self.grows else 8
        if not self.waiting and len(free) * worth >= len(self.running):
            self._keep([slot for slot, number in enumerate(self.running) if number is not None])
        elif units:
            self._arrange()

    def step(self) -> list[int]:
        """One token for every running sequence; returns which have finished."""
        length = max(self.own_lengths) + 1
        if self.on_gpu:
            length = min(-(-length // LENGTH_STEP) * LENGTH_STEP, self.pool.own_room)
        self.uniform_B1.copy_(self._uniform())
        self.graphs.run(length, lambda: self._step(length))
        finished = []
        tokens, logprobs = self.last_B1[:, 0].tolist(), self.logprobs_B.tolist()
        for slot, number in enumerate(self.running):
            if number is None:
                continue
            self.own_lengths[slot] += 1
            if self._append(self.sequences[number], tokens[slot], logprobs[slot]):
                self.running[slot], self.row_of[slot], self.own_lengths[slot] = None, -1, 0
                finished.append(number)
        if finished:
            self._arrange()
        return finished

    def _uniform(self) -> torch.Tensor:
        """(B, 1) random numbers: a slot's next own one where its request has a seed."""
        drawn = uniform(len(self.running), self.generator)
        for slot, number in enumerate(self.running):
            if number is None or (seed := self.sequences[number].request.seed) is None:
                continue
            sequence = self.sequences[number]
            if not sequence.own_draws:
                own = torch.Generator().manual_seed(seed)
                sequence.own_draws = uniform(sequence.request.params.max_tokens, own)[:, 0].tolist()
            drawn[slot, 0] = sequence.own_draws[len(sequence.tokens)]
        return drawn

    def _step(self, length: int) -> None:
        """The device's part: fixed shapes, no waiting, results in the tensors they came from."""
        plan, loaded = self.plan, self.loaded
        assert plan is not None
        plan.begin_step(length)
        # Idle slots run on beside the others; a table of absolute positions may end before they do.
        positions = plan.positions_B[:, None].clamp(max=loaded.context_tokens - 1)
        with planned(plan):
            hidden = loaded.decoder(input_ids=self.last_B1, position_ids=positions, use_cache=False).last_hidden_state
        tokens, logprobs = draw(loaded.logits(hidden[:, 0]), self.draw_plan, self.uniform_B1)
        plan.own_lengths_B += self.active_B
        self.last_B1.copy_(tokens[:, None])
        self.logprobs_B.copy_(logprobs)

    def _append(self, sequence: RunningSequence, token: int, logprob: float) -> bool:
        """Whether this token is the sequence's last."""
        params = sequence.request.params
        sequence.tokens.append(token)
        sequence.logprobs.append(logprob)
        if sequence.request.on_token is not None:
            sequence.request.on_token(token)
        sequence.stopped = token in self.end_ids and not params.ignore_eos
        if params.stop and not sequence.stopped:
            matcher = self.matchers.setdefault(params.stop, StopMatcher(self.loaded.tokenizer, params.stop))
            sequence.stopped = matcher.ends(sequence.tokens)
        return sequence.stopped or len(sequence.tokens) >= params.max_tokens

    def _units(self, numbers: list[int], most: int) -> list[Unit]:
        units = plan_units([self.sequences[number].body for number in numbers], most, self.min_shared)
        return [Unit(tuple(numbers[i] for i in unit.members), unit.shared) for unit in units]

    def _own_room(self, number: int, shared: int) -> int:
        sequence = self.sequences[number]
        return len(sequence.body) - shared + sequence.request.params.max_tokens + 1

    def _arrange(self) -> None:
        """Tell the device who runs where, after somebody came or went; in place where the shapes allow."""
        device, idle = self.loaded.device, SamplingParams(1)
        width = self.width if self.on_gpu else 0
        row_B, slots_GM, place_B = layout(self.row_of, self.pool.rows, device, width)
        ragged = self.on_gpu or any(length < self.pool.prefix_room for length in self.prefix_lengths)
        own_B, prefix_G = (
            torch.tensor(n, device=device, dtype=torch.long) for n in (self.own_lengths, self.prefix_lengths)
        )
        plan = DecodePlan(self.pool.layers, own_B, prefix_G, row_B, slots_GM, place_B, ragged)
        active_B = torch.tensor([int(number is not None) for number in self.running], device=device)
        params = [idle if n is None else self.sequences[n].request.params for n in self.running]
        draw_plan = DrawPlan.of(params, device)
        if self.on_gpu and self.plan is not None and self.plan.fill(plan) and self.draw_plan.fill(draw_plan):
            self.active_B.copy_(active_B)
            return
        self.graphs.forget()
        self.plan, self.draw_plan, self.active_B = plan, draw_plan, active_B
        self.uniform_B1 = torch.zeros(len(params), 1, dtype=torch.float64, device=device)
        self.logprobs_B = torch.zeros(len(params), device=device)

    def _keep(self, slots: list[int]) -> None:
        """Go on with these slots alone."""
        self.pool.keep_slots(slots)
        self.last_B1 = self.last_B1[torch.tensor(slots, device=self.last_B1.device)]
        self.running = [self.running[slot] for slot in slots]
        self.row_of = [self.row_of[slot] for slot in slots]
        self.own_lengths = [self.own_lengths[slot] for slot in slots]
        self._arrange()
