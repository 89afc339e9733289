# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How much memory a rank's model will take, worked out from layouts before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import LayerLayout

CUT_SLOTS = 1.2
"""Slots may be so many times larger if copies of extra experts cut the blocks."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank's model, by what they hold.

    own: the fringe, and the blocks that are not in host memory.
    private: boundary pages, and tensors that every rank keeps whole.
    slots: the slots and the private pages of the views on them; 0 for a rank without slots.
    layer: the rank's own experts of the largest layer, as they are loaded. The start needs room for
        them.
    extra: copies of extra experts, at most.
    other: all weights but the experts.
    on_host: blocks in host memory; no sum contains them.
    loads_on_host: whether the rank loads its experts to host memory first.
    """

    own: int
    private: int
    slots: int
    layer: int
    other: int
    extra: int = 0
    on_host: int = 0
    loads_on_host: bool = False

    @classmethod
    def make(
        cls,
        layout: RankLayout,
        *,
        other_bytes: int,
        extra_bytes: int = 0,
        loads_on_host: bool = False,
    ) -> "MemoryEstimate":
        """Estimate for a rank with this layout, which has no extra experts yet.

        other_bytes: of all its weights but the experts. extra_bytes: the most that it may spend on
        extra experts.
        """
        rank, layouts = layout.rank, layout.layouts
        private = sum(
            span.num_bytes for layer in layouts for t in layer for span in t.private_spans
        )
        slots = slot_bytes(layout)
        if extra_bytes:
            slots = round(slots * CUT_SLOTS)
        return cls(
            own=exported_bytes(layout) - host_bytes(layouts, rank),
            private=private,
            slots=slots + private if slots else 0,
            layer=max(loaded_bytes(layer, rank) for layer in layouts),
            other=other_bytes,
            extra=min(extra_bytes, layout.all_missing_bytes),
            on_host=host_bytes(layouts, rank),
            loads_on_host=loads_on_host,
        )

    @property
    def without_slots(self) -> int:
        """Bytes of the rank's weights outside host memory once it has started, without slots."""
        return self.own + self.private + self.other + self.extra

    @property
    def in_all(self) -> int:
        """Bytes of the rank once it has started."""
        return self.without_slots + self.slots

    @property
    def most(self) -> int:
        """The most bytes that are in use at any time of the start.

        A layer that was loaded to host memory comes to the GPU while vLLM prepares it, before any
        layer has blocks there.
        """
        beside_a_layer = 0 if self.loads_on_host else self.own
        return max(self.in_all, beside_a_layer + self.layer + self.other)

    @property
    def why_a_layer(self) -> str:
        """When the largest layer takes memory of its own, as the end of a sentence."""
        return "while vLLM prepares it" if self.loads_on_host else "twice while it is adopted"

    def describe(self) -> str:
        """The parts of `in_all`, as text for a sentence."""
        parts = {
            "own experts": self.own,
            "private pages": self.private,
            "slots": self.slots,
            "other weights": self.other,
        }
        if self.extra:
            parts["extra experts"] = self.extra
        return ", ".join(f"{gib(num_bytes)} of {name}" for name, num_bytes in parts.items())


def exported_bytes(layout: RankLayout) -> int:
    """Bytes of a rank's blocks and its fringe."""
    return sum(sum(layout.block_sizes(layout.rank, p)) for p in range(layout.num_parcels))


def slot_bytes(layout: RankLayout) -> int:
    """Bytes of all slots of a rank, without the private pages of the views on them."""
    return sum(layout.slot_layout(slot).num_bytes for slot in range(layout.num_slots))


def host_bytes(layouts: Sequence[LayerLayout], rank: int) -> int:
    """Bytes of a rank's blocks in host memory."""
    return sum(
        extent.num_bytes
        for layer in layouts
        for t in layer
        for extent in t.blocks_of(rank)
        if extent.segment.on_host
    )


def gib(num_bytes: int) -> str:
    """A number of bytes as text, in GiB."""
    return f"{num_bytes / 2**30:.2f} GiB"


def loaded_bytes(layer: LayerLayout, rank: int) -> int:
    """Bytes of a rank's own experts of a layer, as they are loaded."""
    return sum(len(t.placement.local_experts(rank)) * t.tensor.expert_bytes for t in layer)
