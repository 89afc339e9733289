# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The MoE layers of this process, collected as they are constructed, and their placement.

Layers are collected at construction because a model's modules are not all of them: draft models
hold more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllm_dwdp.engine.moe.read_count import ReadCount
from vllm_dwdp.layout.placement import Placement

if TYPE_CHECKING:
    import torch

    from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts


class LayerRegistry:
    """The loader calls back: `before_loading` once the model is built, before weights are read, and
    `on_step` with what is being loaded, whenever it gets further.

    loads_on_host: a rank's experts may be more than its GPU can hold.
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
        self.layers: list[DwdpRoutedExperts] = []
        self.read_count = ReadCount()

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


_active: list[LayerRegistry] = []


@contextmanager
def collecting(registry: LayerRegistry) -> Iterator[LayerRegistry]:
    """While a model is built and loaded, its MoE layers go to this registry."""
    _active.append(registry)
    try:
        yield registry
    finally:
        _active.remove(registry)


def active_registry() -> LayerRegistry:
    assert _active, "a dwdp MoE layer was built outside DwdpWorker.load_model"
    return _active[-1]
