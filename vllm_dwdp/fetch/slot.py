# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The state of one slot: which layer's experts it holds, and whether it may be read or written.

    EMPTY --begin_fill--> FILLING --end_fill--> READY --acquire--> IN_USE
      ^                                         |  ^                  |
      +---------------- discard ----------------+  +---- release -----+

* A slot in use is never written: there is no way from IN_USE to FILLING (WAR).
* A slot that fills is never read: there is no way from FILLING to IN_USE (RAW).
"""

from collections.abc import Callable
from enum import StrEnum


class SlotState(StrEnum):
    EMPTY = "empty"
    FILLING = "filling"
    READY = "ready"
    IN_USE = "in use"


class SlotError(RuntimeError):
    """A transition that lets a kernel read missing experts, or a copy write what a kernel reads."""


class Slot:
    """One slot and its state.

    layer: the layer whose experts the slot holds, or will hold once filled. is_whole: whether these
    are all experts that the layer lacks, not only chosen ones. ticket: the copier's ticket for its
    copies. fill_step: the step in which they started. current_step: returns the step that runs.
    """

    def __init__(self, index: int, current_step: Callable[[], int]) -> None:
        self.index = index
        self._current_step = current_step
        self.state = SlotState.EMPTY
        self.layer: int | None = None
        self.is_whole = False
        self.ticket = 0
        self.fill_step = 0

    def begin_fill(self, layer: int, *, is_whole: bool) -> None:
        """Copies for `layer` start; the caller starts them and sets `ticket`."""
        self._go(SlotState.EMPTY, SlotState.FILLING, layer)
        self.layer = layer
        self.is_whole = is_whole
        self.fill_step = self._current_step()

    def end_fill(self) -> None:
        """Its copies have ended."""
        self._go(SlotState.FILLING, SlotState.READY, self.layer)

    def acquire(self, layer: int, *, needs_whole: bool = False) -> None:
        """The layer's kernel reads the slot from now on. needs_whole: all that the layer lacks."""
        if layer != self.layer or (needs_whole and not self.is_whole):
            held = "all" if self.is_whole else "some"
            raise SlotError(
                f"layer {layer} would read slot {self.index} in step {self._current_step()}, but "
                f"the slot holds {held} experts of layer {self.layer}; this is a defect of dwdp, "
                "please report it."
            )
        self._go(SlotState.READY, SlotState.IN_USE, layer)

    def release(self, layer: int) -> None:
        """The layer's kernel has ended."""
        self._go(SlotState.IN_USE, SlotState.READY, layer)

    def discard(self) -> None:
        """Empty the slot; raises SlotError while it is filled or read."""
        if self.state in (SlotState.IN_USE, SlotState.FILLING):
            self._refuse(SlotState.EMPTY, self.layer)
        self.state = SlotState.EMPTY
        self.layer = None
        self.is_whole = False

    def _go(self, before: SlotState, after: SlotState, layer: int | None) -> None:
        if self.state is not before:
            self._refuse(after, layer)
        self.state = after

    def _refuse(self, after: SlotState, layer: int | None) -> None:
        raise SlotError(
            f"slot {self.index} can't go from '{self.state}' (layer {self.layer}) to '{after}' "
            f"for layer {layer} in step {self._current_step()}; this is a defect of dwdp, please "
            "report it."
        )
