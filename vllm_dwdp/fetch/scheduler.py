# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Decides what is copied when, from two calls around every MoE layer: `wait` and `release`.

* RAW, a read after the write that it needs: after `wait` the kernel finds the layer's experts. On
  a CPU `wait` itself waits, on a GPU the stream of the kernel does.
* WAR, a write after the read that it would spoil: the next copy into a slot starts when `release`
  says that the kernel has ended.
* The layers of a slot form a cycle: at the end of a step, copies for the first layers
  of the next step start.
* A layer that finds its slot filled for another layer starts its own copy and waits for all of it
  (the copy is exposed). Nothing is ever assumed about which layer comes next.
* One thread calls the scheduler: the one that runs the model.
"""

from collections.abc import Callable, Sequence

from vllm_dwdp.config import FetchMode
from vllm_dwdp.device.waits import HostWaits, Waits
from vllm_dwdp.fetch.base import ChosenIds, Copier, Copies
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.layer_uses import LayerUses
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.slot import Slot, SlotState


def cpu_stream() -> int:
    """The stream of a CPU, where kernels run in the calling thread: a wait for copies blocks it."""
    return 0


class FetchScheduler:
    """Fills slots with copies, and tells each layer which views to read.

    layers: the copies of each layer; empty if the rank has direct views only.
    current_stream: returns the handle of the stream on which kernels are launched now; copies are
        ordered with the work of that stream. Called at layer 0 of each step, at construction,
        and by `start`, `stop` and `fence_graph`.
    make_waits: gets a list with one entry per layer; makes the object that adds to it the seconds
        that each layer waits. It is the attribute `waits`, in whose place a recorder puts itself.

    stream: the handle of the stream with which copies are ordered in the current step.
    """

    def __init__(
        self,
        layers: Sequence[Copies],
        *,
        num_slots: int,
        copier: Copier,
        policy: Policy,
        counters: FetchCounters,
        current_stream: Callable[[], int] = cpu_stream,
        make_waits: Callable[[list[float]], Waits] = HostWaits,
    ) -> None:
        self.policy = policy
        self._current_stream = current_stream
        self.stream = current_stream()
        self.counters = counters
        self.waits = make_waits(counters.exposed_seconds)
        self._layers = layers
        self._copier = copier
        self._step = 0
        self._slots = [Slot(index, lambda: self._step) for index in range(num_slots)]
        self._following = _following(layers, num_slots)
        self._uses = LayerUses(self._following)

    def wait(self, layer: int, num_tokens: int, chosen: ChosenIds | None = None) -> FetchMode:
        """To be called before a layer's kernel; returns the mode, which says what views it reads.

        Raises SlotError when the slot is not what the state machine promises.
        """
        mode = self._mode(layer, num_tokens)
        self._count(layer, num_tokens, mode)
        if mode is FetchMode.PREFETCH:
            self._have_everything(layer)
        elif mode is FetchMode.SELECTIVE:
            assert chosen is not None, "modes that need the router's choice are refused at start"
            self._have_chosen(layer, chosen)
        return mode

    def release(self, layer: int, mode: FetchMode) -> None:
        """To be called after a layer's kernel, also if the kernel raised."""
        if mode is FetchMode.DIRECT:
            return
        slot = self._slot(layer)
        slot.release(layer)
        if mode is FetchMode.PREFETCH and self._uses.end_one(layer):
            self._prefetch_next(slot, layer)

    def start(self) -> None:
        """Fetch the first layer of every slot before the first step asks for it."""
        self.stream = self._current_stream()
        for slot in self._slots:
            layers = range(slot.index, len(self._layers), len(self._slots))
            first = next((layer for layer in layers if self._layers[layer].num_slices), None)
            if first is not None and slot.state is SlotState.EMPTY:
                self._begin_fill(slot, first)

    def stop(self) -> None:
        """End all copies, and empty all slots that no kernel reads."""
        self.stream = self._current_stream()
        for slot in self._slots:
            if slot.state is SlotState.FILLING:
                self._copier.cancel(slot.ticket)
                self._end_fill(slot)
            if slot.state is not SlotState.IN_USE:
                slot.discard()
        self._copier.drain()  # on a GPU, a wait above made only the stream wait

    def fence_graph(self) -> None:
        """To be called before a graph is captured or replayed, and after a capture.

        A graph finds no copy under way and assumes nothing of the slots. The step after it finds
        the slots empty; so does the step after a capture, whose copies were recorded but never ran.
        Graphs of direct steps touch no slot: if all graphs are direct, slots keep their experts.
        """
        if not self.policy.graphs_write_slots:
            return
        self.stream = self._current_stream()
        for slot in self._slots:
            if slot.state is SlotState.FILLING:
                self._end_fill(slot)
            slot.discard()

    def _mode(self, layer: int, num_tokens: int) -> FetchMode:
        if not self._layers or not self._layers[layer].num_slices:
            return FetchMode.DIRECT
        return self.policy.mode(num_tokens)

    def _count(self, layer: int, num_tokens: int, mode: FetchMode) -> None:
        if layer == 0:
            self._step += 1
            self.stream = self._current_stream()
            self.counters.steps[mode] += 1
        self.counters.forwards[layer] += 1
        self.counters.tokens[layer] += num_tokens

    def _have_everything(self, layer: int) -> None:
        slot = self._slot(layer)
        if slot.layer == layer and slot.is_whole:
            self.counters.hits += 1
            self.counters.step_hits += slot.fill_step != self._step
        else:
            held = slot.layer if slot.is_whole else None
            uses = 0 if held is None or held == layer else self._uses.learn(held, layer)
            self._empty(slot, layer)
            self._begin_fill(slot, layer)
            self._uses.begin(layer, uses)
            self.counters.misses += 1
        if slot.state is SlotState.FILLING:
            self._expose(slot, layer)
        slot.acquire(layer, needs_whole=True)

    def _have_chosen(self, layer: int, chosen: ChosenIds) -> None:
        slot = self._slot(layer)
        if slot.layer == layer and slot.is_whole:
            if slot.state is SlotState.FILLING:
                self._expose(slot, layer)
        else:
            self._bring(slot, layer, chosen)
        slot.acquire(layer)

    def _bring(self, slot: Slot, layer: int, chosen: ChosenIds) -> None:
        """Add the chosen experts to what the slot holds of this layer."""
        experts = self._layers[layer].chosen
        assert experts is not None, "policies with selective steps come with what brings experts"
        if slot.layer != layer:
            self._empty(slot, layer)
            experts.forget()
        else:
            slot.discard()  # the bytes stay, and `experts` remembers which they are
        slot.begin_fill(layer, is_whole=False)
        self.waits.begin(self._step)
        try:
            bytes_by_peer, num_copies, num_hits = experts.fetch(*chosen)
        except BaseException:
            slot.end_fill()
            slot.discard()
            raise
        self.waits.end(layer)
        slot.end_fill()
        self.counters.selective_hits += num_hits
        if num_copies:
            self.counters.add_copy(FetchMode.SELECTIVE, bytes_by_peer, num_copies)

    def _prefetch_next(self, slot: Slot, layer: int) -> None:
        if (following := self._following[layer]) != layer:
            slot.discard()
            self._begin_fill(slot, following)

    def _begin_fill(self, slot: Slot, layer: int) -> None:
        slot.begin_fill(layer, is_whole=True)
        self._uses.begin(layer)
        copies = self._layers[layer]
        try:
            slot.ticket = self._copier.submit(copies.everything, self.stream)
        except BaseException:
            self._give_up(slot)
            raise
        self.counters.add_copy(FetchMode.PREFETCH, copies.bytes_by_peer, copies.num_slices)

    def _give_up(self, slot: Slot) -> None:
        """Empty the slot: part of a copy may be under way without a ticket to wait for."""
        slot.end_fill()
        slot.discard()
        self._copier.drain()

    def _expose(self, slot: Slot, layer: int) -> None:
        self.waits.begin(self._step)
        self._end_fill(slot)
        self.waits.end(layer)

    def _end_fill(self, slot: Slot) -> None:
        self._copier.wait(slot.ticket, self.stream)
        slot.end_fill()

    def _empty(self, slot: Slot, layer: int) -> None:
        """Empty the slot for `layer`; a copy for another layer is cut short."""
        if slot.state is SlotState.FILLING:
            self._copier.cancel(slot.ticket)
            self._expose(slot, layer)
            self.counters.cancelled += 1
        slot.discard()

    def slot_of(self, layer: int) -> int:
        """The number of the slot that a layer uses in the modes that copy."""
        return layer % len(self._slots)

    def _slot(self, layer: int) -> Slot:
        return self._slots[self.slot_of(layer)]


def _following(layers: Sequence[Copies], num_slots: int) -> list[int]:
    """By layer, the next layer of its slot with something to copy; the first follows the last."""
    found = list(range(len(layers)))
    for slot in range(num_slots):
        of_slot = range(slot, len(layers), num_slots)
        cycle = [layer for layer in of_slot if layers[layer].num_slices]
        for layer, after in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            found[layer] = after
    return found
