# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Experts in the memory of an NVIDIA GPU."""

import time
from typing import Any

import torch

from vllm_dwdp._core import Copier, CudaCopier, CudaDriver
from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.device.bandwidth import GpuProbe, LinkProbe
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.device.waits import GpuWaits, Waits
from vllm_dwdp.layout.copies import gpu_slice_bytes
from vllm_dwdp.memory.slots import MakeChosen


class GpuMemory(RankMemory):
    """Memory of the GPU that this rank runs on."""

    kind = "cuda"
    is_taken_at_once = True

    def __init__(self, rank: int) -> None:
        gpu = torch.cuda.current_device()
        self.gpu_name = f"GPU {torch.cuda.get_device_properties(gpu).uuid}"
        self.driver = self.slot_driver = self._driver = CudaDriver(gpu)
        self._totals: torch.Tensor | None = None

    def make_copier(self, config: DwdpConfig) -> Copier:
        return CudaCopier(self._driver, use_batches=config.batched_copies)

    def slice_bytes(self, peer_bytes: int) -> int:
        return gpu_slice_bytes(peer_bytes)

    def make_chosen(self, copier: Copier, num_ranks: int) -> MakeChosen[Any]:
        from vllm_dwdp.device import gather  # Triton comes with vLLM for GPUs

        totals = self._totals = gather.make_totals(num_ranks, "cuda")
        return lambda experts: gather.GatheredExperts(experts, totals)

    def link_probe(self, copier: Copier) -> LinkProbe:
        cache_bytes = torch.cuda.get_device_properties().L2_cache_size
        return GpuProbe(self.slot_driver, copier, self.seconds, cache_bytes)

    def make_waits(self, seconds: list[float]) -> Waits:
        return GpuWaits(seconds)

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info()
        return int(free)

    def gathered(self) -> list[int] | None:
        return None if self._totals is None else self._totals.tolist()

    def current_stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)

    def seconds(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def give_back(self) -> None:
        """Return what PyTorch keeps of freed memory: of the GPU, and pinned memory of the host."""
        torch.cuda.empty_cache()
        _empty_host_cache()


def _empty_host_cache() -> None:
    """Free the cache of pinned memory; PyTorch 2.12 and later have a public name for this."""
    if hasattr(torch.accelerator, "empty_host_cache"):
        torch.accelerator.empty_host_cache()
    elif hasattr(torch._C, "_host_emptyCache"):
        torch._C._host_emptyCache()
