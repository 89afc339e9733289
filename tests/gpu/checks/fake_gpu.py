# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The fake CUDA driver with the interface of `Gpu`, to rehearse the checks of this folder."""

from typing import Any

import torch
from parts import Need
from support.fake_cuda import FakeCuda, bytes_of

from vllm_dwdp._core import View
from vllm_dwdp.device.waits import HostWaits


class FakeGpu(FakeCuda):
    """Two GPUs on host memory. Bytes and calls are right; times mean nothing."""

    offers = frozenset({Need.TWO_GPUS})
    make_waits = HostWaits
    job: dict[str, Any] = {}  # noqa: RUF012
    """Keys of the job of a rank's process; see tests/cuda/gpu_process.py."""

    num_submissions, num_largest = 300, 2
    """See submissions.py. Numbers are small since the fake driver checks every pair of accesses."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def zeros(self, num_bytes: int) -> torch.Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def bytes_of(self, view: View) -> torch.Tensor:
        """The bytes of a view as a tensor, uint8 [num_bytes]."""
        return bytes_of(view)

    def synchronize_all(self) -> None:
        """Nothing runs by itself on the fake driver."""
