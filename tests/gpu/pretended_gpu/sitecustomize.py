# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Makes Python processes with this folder on their path find an H100 until they call the driver.

rehearse_vllm.py puts the folder on the path of vLLM's processes on a machine without a GPU. There
NVML, Triton and PyTorch find one GPU, and the first call of the CUDA driver fails as usual.
"""

import os
import sys
from typing import NamedTuple


class Memory(NamedTuple):
    total: int
    free: int
    used: int = 0


ANSWERS = {
    "nvmlInit": None,
    "nvmlShutdown": None,
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": "GPU 0",
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetUUID": "GPU-0",
    "nvmlDeviceGetMemoryInfo": Memory(80 << 30, 80 << 30),
    "nvmlDeviceGetNumaNodeId": 0,
}


def pretend() -> None:
    import torch
    import vllm.third_party.pynvml as nvml
    from triton.backends import backends

    for name, answer in ANSWERS.items():
        setattr(nvml, name, lambda *_, answer=answer: answer)
    backends["nvidia"].driver.is_active = staticmethod(lambda: True)
    backends["amd"].driver.is_active = staticmethod(lambda: False)
    torch.accelerator.device_count = lambda: 1
    torch.cuda.device_count = lambda: 1


if os.path.basename(sys.argv[0] if hasattr(sys, "argv") else "") != "pip":
    pretend()
