# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The state that the MoE layers, the loader and the operator of one process share.

vLLM constructs layers and loaders by name, and calls an operator with tensors and numbers only, so
dwdp can't pass the state to them. They call `context` instead, for the one context that this
process has entered.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_dwdp.engine.moe.read_count import ReadCount
from vllm_dwdp.engine.moe.untried_kinds import UntriedKinds
from vllm_dwdp.fetch.base import Fetcher, InPlace
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.rank.expert_counts import ExpertCounts

if TYPE_CHECKING:
    import torch

    from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts


class MoeContext:
    """The MoE layers of one model on one rank, collected as they are constructed.

    A layer adds itself when it is constructed. Once the model is loaded, the layers are complete: a
    draft model is built afterwards, of vLLM's own MoE layers, with all experts on every rank.

    before_loading: called once the model is built, before weights are read.
    on_step: called whenever the loader gets further, with a description of what it loads.
    loads_on_host: whether experts are loaded to host memory; a GPU may not hold all of a rank's.
    """

    def __init__(
        self,
        *,
        rank: int,
        dwdp_size: int,
        num_experts_per_worker: int | None,
        host_experts: int = 0,
        loads_on_host: bool = False,
        on_step: Callable[[str], None] = lambda detail: None,
        before_loading: Callable[["torch.nn.Module"], None] = lambda model: None,
    ) -> None:
        self.rank = rank
        self.before_loading = before_loading
        self.on_step = on_step
        self._dwdp_size = dwdp_size
        self._num_experts_per_worker = num_experts_per_worker
        self._host_experts = host_experts
        self.loads_on_host = loads_on_host
        self.inner_format = "auto"
        """The load format that the user chose."""
        self.layers: list[DwdpRoutedExperts] = []
        self.is_complete = False
        """True once the model itself is loaded; layers that are built later are of a draft."""
        self.fetcher: Fetcher = InPlace()
        self.expert_counts: ExpertCounts | None = None
        """Counts the experts that tokens choose; None if nothing is counted."""
        self.read_count = ReadCount()
        self.untried_kinds = UntriedKinds()

    def enter(self) -> None:
        """Make `context` return this one from now on. A worker process serves one model."""
        _entered[:] = [self]

    def install(self, fetcher: Fetcher) -> None:
        """Let the operator run this model's layers and get their experts through this fetcher."""
        self.fetcher = fetcher
        self.enter()

    def placement(self, num_experts: int) -> Placement:
        return Placement.make(
            num_experts=num_experts,
            dwdp_size=self._dwdp_size,
            num_experts_per_worker=self._num_experts_per_worker,
            host_experts=self._host_experts,
        )

    def add(self, layer: "DwdpRoutedExperts") -> int:
        """Collect a layer; returns its index in the order of construction."""
        self.layers.append(layer)
        return len(self.layers) - 1


_entered: list[MoeContext] = []


def context() -> MoeContext:
    """The context that was entered last."""
    assert _entered, "a dwdp MoE layer was built outside DwdpWorker.load_model"
    return _entered[0]
