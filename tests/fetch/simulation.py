# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Simulates slots, a copier and kernels in one thread; a seed decides when copies make progress.

Each slot holds a set of parts; a part is (layer, number). A test fails if a kernel reads a slot
that lacks a part it needs, or if a copy writes to a slot while a kernel reads it.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.base import ChosenIds
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler

NUM_PARTS = 3


class KernelFailed(Exception):
    pass


class CopyFailed(Exception):
    pass


@dataclass
class Memory:
    """The parts that each slot holds, and the slots that kernels are reading."""

    parts: dict[int, set] = field(default_factory=dict)
    reading: set[int] = field(default_factory=set)

    def write(self, slot, parts):
        assert slot not in self.reading, f"a copy writes slot {slot} under a kernel"
        self.parts[slot] = set(parts)

    def parts_of(self, slot, layer):
        return {part for part in self.parts.get(slot, ()) if part[0] == layer}


@dataclass
class Everything:
    """Takes the place of a CopyList: copies all parts of a layer."""

    layer: int
    slot: int


@dataclass
class Job:
    ticket: int
    copies: Everything
    num_written: int = 0
    num_left: int = NUM_PARTS


class SimulatedCopier:
    """Copies in the order of submission, one part at a time, when the simulation lets it.

    next_fails: "before" or "after" makes the next `submit` raise before or after it has taken the
    job.
    """

    def __init__(self, memory, random):
        self._memory = memory
        self._random = random
        self._jobs = []
        self._num_submitted = 0
        self._num_done = 0
        self.next_fails = None
        self.streams = []

    def submit(self, copies, stream):
        self.streams.append(stream)
        failure, self.next_fails = self.next_fails, None
        if failure == "before":
            raise CopyFailed
        self._num_submitted += 1
        self._jobs.append(Job(self._num_submitted, copies))
        if failure == "after":
            raise CopyFailed
        return self._num_submitted

    def cancel(self, ticket):
        for job in self._jobs:
            if job.ticket == ticket:  # a part that was begun is still written
                job.num_left = min(job.num_left, self._random.randint(0, 1))

    def wait(self, ticket, stream):
        self.streams.append(stream)
        assert ticket <= self._num_submitted
        while self._num_done < ticket:
            self._advance()

    def drain(self):
        while self._jobs:
            self._advance()

    @property
    def is_busy(self):
        return bool(self._jobs)

    def maybe_advance(self):
        while self._jobs and self._random.random() < 0.5:
            self._advance()

    def _advance(self):
        job = self._jobs[0]
        if job.num_left == 0:
            self._num_done = self._jobs.pop(0).ticket
            return
        layer, slot = job.copies.layer, job.copies.slot
        held = self._memory.parts_of(slot, layer) if job.num_written else set()
        self._memory.write(slot, held | {(layer, job.num_written)})
        job.num_written += 1
        job.num_left -= 1


class SimulatedChosen:
    """Takes the place of ChosenExperts: copies the first `num_ids` parts, except those it holds."""

    def __init__(self, layer, slot, memory):
        self._layer, self._slot, self._memory = layer, slot, memory
        self._held = set()

    def fetch(self, address, num_ids, id_bytes):
        wanted = {(self._layer, part) for part in range(num_ids)}
        brought = wanted - self._held
        if brought:
            held = self._memory.parts_of(self._slot, self._layer)
            self._memory.write(self._slot, held | brought)
        self._held |= brought
        return [len(brought)], len(brought), len(wanted) - len(brought)

    def forget(self):
        self._held = set()


@dataclass
class SimulatedLayer:
    everything: Everything
    chosen: SimulatedChosen
    bytes_by_peer: tuple[int, ...]
    num_slices: int


class Simulation:
    """A scheduler over simulated slots. without: indices of layers that lack no expert."""

    def __init__(self, num_layers, num_slots, random, without=(), **options):
        self.memory = Memory()
        self.copier = SimulatedCopier(self.memory, random)
        self.counters = FetchCounters(num_layers, 1)
        self.num_layers = num_layers
        self._num_slots = num_slots
        self._without = set(without)
        self.scheduler = FetchScheduler(
            [self._layer(layer) for layer in range(num_layers)],
            num_slots=num_slots,
            copier=self.copier,
            policy=Policy.always(FetchMode.DIRECT),
            counters=self.counters,
            **options,
        )

    def run(self, layer, mode, *, num_chosen=NUM_PARTS, fails=False):
        """Run one layer of a step in this mode, from wait to release."""
        self.scheduler.policy = Policy.always(mode)
        self.copier.maybe_advance()
        taken = self.scheduler.wait(layer, 1, ChosenIds(0, num_chosen, 4))
        assert taken is (FetchMode.DIRECT if layer in self._without else mode)
        try:
            with self._kernel(layer, taken, num_chosen):
                self.copier.maybe_advance()
                if fails:
                    raise KernelFailed
        finally:
            self.scheduler.release(layer, taken)
        self.copier.maybe_advance()

    def step(self, mode, **options):
        for layer in range(self.num_layers):
            self.run(layer, mode, **options)

    def replay_graph(self, mode):
        """Replay a captured step of this mode; a graph that copies writes to the slots itself."""
        self.scheduler.policy = Policy.always(mode, captured_tokens=1)
        self.scheduler.fence_graph()
        if self.scheduler.policy.graphs_write_slots:
            assert not self.copier.is_busy, "a graph writes slots under a copy"
            self.memory.parts = {slot: set() for slot in range(self._num_slots)}
        self.copier.maybe_advance()

    def _layer(self, layer):
        slot = layer % self._num_slots
        num_parts = 0 if layer in self._without else NUM_PARTS
        chosen = SimulatedChosen(layer, slot, self.memory)
        return SimulatedLayer(Everything(layer, slot), chosen, (num_parts,), num_parts)

    @contextmanager
    def _kernel(self, layer, mode, num_chosen):
        if mode is FetchMode.DIRECT:
            yield
            return
        slot = layer % self._num_slots
        num_needed = NUM_PARTS if mode is FetchMode.PREFETCH else num_chosen
        held = self.memory.parts.get(slot, set())
        needed = {(layer, part) for part in range(num_needed)}
        assert needed <= held, f"layer {layer} reads {held} in slot {slot}"
        self.memory.reading.add(slot)
        try:
            yield
        finally:
            self.memory.reading.discard(slot)
