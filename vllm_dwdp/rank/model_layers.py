# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a rank needs of the MoE layers of its model, whoever runs them."""

from collections.abc import Sequence
from typing import Protocol

from vllm_dwdp._core import View
from vllm_dwdp.fetch.base import Fetcher
from vllm_dwdp.fetch.scheduler import FetchScheduler


class ModelLayers(Protocol):
    """The layers are counted as in the rank's layout."""

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        ...

    @property
    def top_k(self) -> int:
        """Experts that a token chooses."""
        ...

    def install(self, fetcher: Fetcher) -> None:
        """Have all layers ask this fetcher from now on."""
        ...

    def bind_slot(self, layer_idx: int, views: Sequence[View]) -> None:
        """Let a layer also run on views that show a slot in the place of peers' memory."""
        ...

    def unbind_slot(self, layer_idx: int) -> None:
        """Let a layer run in place only."""
        ...

    def check_router_is_heard(self) -> None:
        """Raise ConfigError if a kernel keeps the router's choice to itself."""
        ...

    def fence_graphs(self, scheduler: FetchScheduler) -> None:
        """Have the scheduler told of every capture and every replay of a graph."""
        ...
