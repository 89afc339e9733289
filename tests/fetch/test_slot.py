# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""An illegal transition of a slot changes nothing; its error names layer, slot and step."""

import pytest

from vllm_dwdp.fetch.slot import Slot, SlotError, SlotState

TRANSITIONS = {
    "begin_fill": (SlotState.EMPTY, lambda slot: slot.begin_fill(3, is_whole=True)),
    "end_fill": (SlotState.FILLING, lambda slot: slot.end_fill()),
    "acquire": (SlotState.READY, lambda slot: slot.acquire(3)),
    "release": (SlotState.IN_USE, lambda slot: slot.release(3)),
}


def slot_in(state):
    slot = Slot(1, lambda: 8)
    if state is SlotState.EMPTY:
        return slot
    slot.begin_fill(3, is_whole=True)
    if state is SlotState.FILLING:
        return slot
    slot.end_fill()
    if state is SlotState.IN_USE:
        slot.acquire(3)
    return slot


@pytest.mark.parametrize("name", TRANSITIONS)
@pytest.mark.parametrize("state", SlotState)
def test_only_legal_transitions_happen(name, state):
    legal, transition = TRANSITIONS[name]
    slot = slot_in(state)
    if state is legal:
        transition(slot)
        assert slot.state is not state
        return
    with pytest.raises(SlotError, match=r"layer .* in step 8"):
        transition(slot)
    assert slot.state is state


def test_slot_of_another_layer_is_not_read():
    slot = slot_in(SlotState.READY)
    with pytest.raises(SlotError, match=r"layer 4 would read slot 1 in step 8, .* of layer 3"):
        slot.acquire(4)
    assert slot.state is SlotState.READY


@pytest.mark.parametrize("state", [SlotState.IN_USE, SlotState.FILLING])
def test_slot_that_is_read_or_written_is_not_discarded(state):
    with pytest.raises(SlotError, match=rf"slot 1 can't go from '{state}' \(layer 3\)"):
        slot_in(state).discard()


def test_some_experts_are_not_read_as_all():
    slot = Slot(1, lambda: 8)
    slot.begin_fill(3, is_whole=False)
    slot.end_fill()
    with pytest.raises(SlotError, match="the slot holds some experts of layer 3"):
        slot.acquire(3, needs_whole=True)
