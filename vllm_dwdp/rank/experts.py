# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One rank's own experts, and its views of all experts of its group.

In this order: each layer is adopted, the fringe is sealed, the peers' handles are taken, and slots
are made if a step will use them.
"""

from collections.abc import Sequence

from vllm_dwdp._core import HandleType, MemoryDriver, View
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.memory.expert_views import ExpertViews, TakeHandles
from vllm_dwdp.memory.handle import Handle
from vllm_dwdp.memory.local_shard import LocalShard
from vllm_dwdp.memory.slots import Chosen, LayerCopies, MakeChosen, Slots


class RankExperts:
    """A rank's memory for experts. `direct` has, by layer, the views that show blocks in place.

    slot_driver: the driver that makes slots; None for `driver`.
    """

    def __init__(
        self, driver: MemoryDriver, layout: RankLayout, slot_driver: MemoryDriver | None = None
    ) -> None:
        self.layout = layout
        self.shard = LocalShard(driver, layout)
        self.direct: list[list[View]] = []
        self.slots: Slots | None = None
        self._driver = driver
        self._slot_driver = slot_driver or driver
        self._views: ExpertViews | None = None

    @property
    def views(self) -> ExpertViews:
        """The object that builds views and counts their mappings."""
        assert self._views is not None, "views come with the peers' handles"
        return self._views

    def adopt_layer(self, addresses: Sequence[int]) -> None:
        """See LocalShard.adopt_layer."""
        self.shard.adopt_layer(addresses)

    def seal(self) -> None:
        """See LocalShard.seal; called after the last layer."""
        self.shard.seal()

    def handles(self, handle_type: HandleType, parcel: int) -> list[tuple[Handle, int]]:
        """See LocalShard.handles."""
        return self.shard.handles(handle_type, parcel)

    def connect(self, take_handles: TakeHandles) -> None:
        """Take the peers' handles, and build the views of all layers."""
        self._views = ExpertViews(self._driver, self.layout, self.shard, take_handles)
        self.direct = [self._views.build(i) for i in range(self.layout.num_layers)]

    def make_slots(self, num_slots: int, *, slice_bytes: int) -> Slots:
        """slice_bytes: the largest slice of a copy, see layout/copies.py."""
        layout = self.layout.with_slots(num_slots)
        self.slots = Slots(self._slot_driver, layout, slice_bytes=slice_bytes)
        return self.slots

    def make_slot_for(self, layer_idx: int, slice_bytes: int) -> Slots:
        """Make a slot for one layer alone; the caller owns it. slice_bytes: see make_slots."""
        layout = self.layout.with_slot_for(layer_idx)
        return Slots(self._slot_driver, layout, slice_bytes=slice_bytes)

    def build_on_slot(self, layer_idx: int, slots: Slots | None = None) -> list[View]:
        """Build the views of a layer that show its slot in the place of peers' memory.

        slots: the slots to show; None for those of `make_slots`.
        """
        slots = slots or self.slots
        assert slots is not None, "slots are made before views of them"
        return self.views.build_on_slot(layer_idx, slots)

    def copies(self, make_chosen: MakeChosen[Chosen] | None = None) -> list[LayerCopies[Chosen]]:
        """For each layer, the copies that bring the experts it lacks to its slot."""
        assert self.slots is not None, "slots are made before copies to them"
        return [self.slots.copies(i, views, make_chosen) for i, views in enumerate(self.direct)]
