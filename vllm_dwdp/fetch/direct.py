# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Fetch mode 'direct': kernels read peers' memory where it lies; nothing moves, nothing waits."""


class DirectFetch:
    """Counts what runs through the layers. Called by the layer hooks, in the worker."""

    def __init__(self, num_layers: int) -> None:
        self.forwards = [0] * num_layers
        self.tokens = [0] * num_layers

    def wait(self, layer_idx: int, num_tokens: int) -> None:
        """Before a layer's kernel; its experts are always there."""
        self.forwards[layer_idx] += 1
        self.tokens[layer_idx] += num_tokens

    def release(self, layer_idx: int) -> None:
        """After a layer's kernel; nothing is held."""
