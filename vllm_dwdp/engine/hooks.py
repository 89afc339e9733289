# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Layer hooks as custom ops, so that they survive torch.compile.

Both declare that they change the tensor they are given. They don't; it pins the order under
torch.compile: wait, kernel, release. The token count is read from the tensor (`x.shape[0]`), which
is the padded count on every path.
"""

from typing import Protocol

import torch
from vllm.utils.torch_utils import direct_register_custom_op


class Fetcher(Protocol):
    def wait(self, layer_idx: int, num_tokens: int) -> None: ...
    def release(self, layer_idx: int) -> None: ...


_fetchers: list[Fetcher] = []


def install_fetcher(fetcher: Fetcher) -> None:
    """Set the fetcher of this process. A worker process serves one model."""
    _fetchers[:] = [fetcher]


def _wait(x: torch.Tensor, layer_idx: int) -> None:
    _fetchers[0].wait(layer_idx, x.shape[0])


def _release(x: torch.Tensor, layer_idx: int) -> None:
    _fetchers[0].release(layer_idx)


def _no_effect(x: torch.Tensor, layer_idx: int) -> None:
    return None


def register_ops() -> None:
    """Define `torch.ops.vllm.dwdp_wait_experts` and `dwdp_release_experts`, once a process."""
    if hasattr(torch.ops.vllm, "dwdp_wait_experts"):
        return
    direct_register_custom_op("dwdp_wait_experts", _wait, mutates_args=["x"], fake_impl=_no_effect)
    direct_register_custom_op(
        "dwdp_release_experts", _release, mutates_args=["x"], fake_impl=_no_effect
    )
