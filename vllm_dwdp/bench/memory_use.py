# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The memory that an arm takes once it has served some requests."""

import subprocess
from dataclasses import dataclass

from vllm_dwdp.bench.arm import Arm

NVIDIA_SMI = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes.

    host: of all processes, without pages of files; shared pages count once. shared_experts: of
    those, experts that ranks share. gpus: on all GPUs; None if nvidia-smi doesn't say.
    """

    host: int
    shared_experts: int
    gpus: int | None


def memory_of(arm: Arm) -> MemoryUse:
    pids = {process.pid for process in arm.processes()}
    return MemoryUse(arm.host_bytes(), arm.shared_expert_bytes(), gpu_bytes(pids))


def gpu_bytes(pids: set[int]) -> int | None:
    """Bytes that processes use on GPUs; None if nvidia-smi is missing, or shows none of them."""
    try:
        said = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    rows = [line.split(",") for line in said.splitlines() if line.count(",") == 1]
    used = [mib for pid, mib in rows if pid.strip().isdigit() and int(pid) in pids]
    if not used or not all(mib.strip().isdigit() for mib in used):
        return None
    return sum(map(int, used)) << 20
