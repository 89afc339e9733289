# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Every MoE layer's kernel, between wait and release, as one opaque operator.

* Opaque to torch.compile, because a step's token count picks the views that the kernel reads: a
  traced kernel would have the views of one mode baked in.
* The token count is read from the tensor (`x.shape[0]`), which is the padded count on every path:
  real steps, profiling, dummy runs, capture.
* A kernel that raises releases its slot all the same.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from vllm.utils.torch_utils import direct_register_custom_op

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.base import ChosenIds, Fetcher


class ExpertLayer(Protocol):
    """A MoE layer bound to views of all experts."""

    def run(
        self, mode: FetchMode, x: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None
    ) -> torch.Tensor: ...

    def chosen(self, second: torch.Tensor | None) -> ChosenIds | None: ...


_layers: list[ExpertLayer] = []
_fetchers: list[Fetcher] = []


def install(layers: Sequence[ExpertLayer], fetcher: Fetcher) -> None:
    """Set the layers and the fetcher of this process. A worker process serves one model."""
    _layers[:] = layers
    _fetchers[:] = [fetcher]


def register_op() -> None:
    """Define `torch.ops.vllm.dwdp_experts`, once a process."""
    if not hasattr(torch.ops.vllm, "dwdp_experts"):
        direct_register_custom_op("dwdp_experts", _experts, fake_impl=_shape)


def _experts(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None, layer_idx: int
) -> torch.Tensor:
    layer, fetcher = _layers[layer_idx], _fetchers[0]
    mode = fetcher.wait(layer_idx, x.shape[0], layer.chosen(second))
    try:
        return layer.run(mode, x, first, second)
    finally:
        fetcher.release(layer_idx, mode)


def _shape(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None, layer_idx: int
) -> torch.Tensor:
    return torch.empty_like(x)
