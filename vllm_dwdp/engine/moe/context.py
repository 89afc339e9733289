# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What the MoE layers, the loader and the operator of this process share.

vLLM constructs layers and loaders by name and calls an operator with tensors and numbers, so that
nothing can be handed to them. They ask for the one context that this process has entered.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_dwdp.engine.moe.read_count import ReadCount
from vllm_dwdp.fetch.base import Fetcher, InPlace
from vllm_dwdp.layout.placement import Placement

if TYPE_CHECKING:
    import torch

    from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts


class MoeContext:
    """The MoE layers of one model on one rank, collected as they are constructed.

    Layers are collected at construction because a model's modules are not all of them: draft models
    hold more.

    before_loading: called once the model is built, before weights are read.
    on_step: called with what is being loaded, whenever the loader gets further.
    loads_on_host: whether a rank's experts may be more than its GPU can hold.
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
        self.fetcher: Fetcher = InPlace()
        self.read_count = ReadCount()

    def enter(self) -> None:
        """Be the context that is asked for from now on. A worker process serves one model."""
        _entered[:] = [self]

    def install(self, fetcher: Fetcher) -> None:
        """Run the operator on this model's layers, and let this fetcher get their experts."""
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
        """Returns the layer's index, its place in the order of construction."""
        self.layers.append(layer)
        return len(self.layers) - 1


_entered: list[MoeContext] = []


def context() -> MoeContext:
    """The one that was entered last."""
    assert _entered, "a dwdp MoE layer was built outside DwdpWorker.load_model"
    return _entered[0]


def leave_context() -> None:
    """Let go of the model; tests of many models in one process do."""
    _entered.clear()
