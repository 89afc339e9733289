# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How much memory a rank's model will take, worked out from layouts before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import LayerLayout


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank's model, by what they hold.

    own: blocks and fringe, without those in host memory. private: boundary pages, and tensors that
    every rank keeps whole. slots: with the private pages of their views; 0 where there are none.
    layer: the largest layer as it is loaded, for which there must be room during the start. other:
    weights that are not of experts. on_host: blocks in host memory, part of no sum. loads_on_host:
    the rank loads its experts to host memory.
    """

    own: int
    private: int
    slots: int
    layer: int
    other: int
    on_host: int = 0
    loads_on_host: bool = False

    @classmethod
    def make(
        cls, layout: RankLayout, *, other_bytes: int, loads_on_host: bool = False
    ) -> "MemoryEstimate":
        """For a rank with this layout and other weights of so many bytes."""
        rank, layouts = layout.rank, layout.layouts
        private = sum(
            span.num_bytes for layer in layouts for t in layer for span in t.private_spans
        )
        slots = slot_bytes(layout)
        return cls(
            own=exported_bytes(layout) - host_bytes(layouts, rank),
            private=private,
            slots=slots + private if slots else 0,
            layer=max(loaded_bytes(layer, rank) for layer in layouts),
            other=other_bytes,
            on_host=host_bytes(layouts, rank),
            loads_on_host=loads_on_host,
        )

    @property
    def without_slots(self) -> int:
        """Bytes of a rank that has no slots, once it has started."""
        return self.own + self.private + self.other

    @property
    def in_all(self) -> int:
        """Bytes of the rank once it has started."""
        return self.without_slots + self.slots

    @property
    def most(self) -> int:
        """The most that is in use at any time of the start.

        A layer that was loaded to host memory comes to the GPU while vLLM prepares it, before any
        layer has blocks there.
        """
        beside_a_layer = 0 if self.loads_on_host else self.own
        return max(self.in_all, beside_a_layer + self.layer + self.other)

    @property
    def why_a_layer(self) -> str:
        """Why the largest layer takes memory of its own during the start, for a sentence."""
        return "while vLLM prepares it" if self.loads_on_host else "twice while it is adopted"

    def describe(self) -> str:
        """The parts, for a sentence."""
        parts = {
            "own experts": self.own,
            "private pages": self.private,
            "slots": self.slots,
            "other weights": self.other,
        }
        return ", ".join(f"{gib(num_bytes)} of {name}" for name, num_bytes in parts.items())


def exported_bytes(layout: RankLayout) -> int:
    """Bytes of a rank's blocks and its fringe."""
    return sum(sum(layout.block_sizes(layout.rank, p)) for p in range(layout.num_parcels))


def slot_bytes(layout: RankLayout) -> int:
    """Bytes of a rank's slots."""
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
    """A number of bytes, for people."""
    return f"{num_bytes / 2**30:.2f} GiB"


def loaded_bytes(layer: LayerLayout, rank: int) -> int:
    """Bytes of a rank's own experts of a layer, as they are loaded."""
    return sum(len(t.placement.local_experts(rank)) * t.tensor.expert_bytes for t in layer)
