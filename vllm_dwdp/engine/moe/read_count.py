# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Counts how many bytes of its checkpoint a rank has read.

* A tensor from a safetensors file points into the mapped file. The operating system reads a page
  of the file when it is copied, so only the rows that a MoE layer copied count as read.
* In every other way of loading, vLLM has read a whole tensor before it hands the tensor over.
"""

import re

NUMBERED = re.compile(r"\.experts\.(\d+)\.")
"""The name of a tensor that holds one expert. Tensors of all experts have other names."""


class ReadCount:
    """Sizes in bytes. The loader and the layers of a rank count in the same object."""

    def __init__(self) -> None:
        self.num_dense_bytes = 0
        self._num_expert_bytes = 0
        self._num_taken_bytes = 0

    @property
    def num_expert_bytes(self) -> int:
        return self._num_expert_bytes + self._num_taken_bytes

    @property
    def num_bytes(self) -> int:
        return self.num_dense_bytes + self.num_expert_bytes

    def take(self, num_bytes: int) -> None:
        """Note that a MoE layer has copied rows out of the tensor that vLLM is loading."""
        self._num_taken_bytes += num_bytes

    def close(self, name: str, num_bytes: int, *, is_mapped: bool) -> bool:
        """Count a tensor that vLLM has loaded. Returns whether a MoE layer took rows of it."""
        taken, self._num_taken_bytes = self._num_taken_bytes, 0
        if not taken and not NUMBERED.search(name):
            self.num_dense_bytes += num_bytes
        else:
            self._num_expert_bytes += taken if is_mapped else num_bytes
        return taken > 0
