# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The calls that a rank makes on the MoE layers of its model."""

from collections.abc import Sequence
from typing import Protocol

from vllm_dwdp._core import View
from vllm_dwdp.fetch.base import Fetcher
from vllm_dwdp.fetch.scheduler import FetchScheduler


class ModelLayers(Protocol):
    """The MoE layers of a model. `layer_idx` counts them as the rank's layout does."""

    @property
    def num_experts(self) -> int:
        """Experts of the layer that has most."""
        ...

    @property
    def top_k(self) -> int:
        """Experts that a token chooses, in the layer where it chooses most."""
        ...

    def install(self, fetcher: Fetcher) -> None:
        """Have all layers get their experts through this fetcher from now on."""
        ...

    def bind_slot(self, layer_idx: int, views: Sequence[View]) -> None:
        """Let a layer also run on views that show a slot in the place of peers' memory."""
        ...

    def unbind_slot(self, layer_idx: int) -> None:
        """Undo `bind_slot`: the layer runs in place only."""
        ...

    @property
    def hears_router(self) -> bool:
        """Whether the kernels of all layers tell which experts the router chose."""
        ...

    def check_router_is_heard(self) -> None:
        """Raise ConfigError, with the layer's name, unless `hears_router`."""
        ...

    def fence_graphs(self, scheduler: FetchScheduler) -> None:
        """Tell the scheduler of every capture and every replay of a CUDA graph."""
        ...
