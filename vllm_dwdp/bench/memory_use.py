# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The memory that an arm takes once it has served some requests."""

import subprocess
from dataclasses import dataclass

from vllm_dwdp.bench.arm import Arm

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes.

    host: resident memory of all processes, from their maps in /proc; shared pages count once.
    shared_experts: of those, experts that ranks share. gpus: used on all GPUs of the machine by
    whatever runs there; None without nvidia-smi.
    """

    host: int
    shared_experts: int
    gpus: int | None


def memory_of(arm: Arm) -> MemoryUse:
    return MemoryUse(arm.host_bytes(), arm.shared_expert_bytes(), _gpu_bytes())


def _gpu_bytes() -> int | None:
    try:
        said = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return sum(int(line) for line in said.split()) << 20
