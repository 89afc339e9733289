# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tells vLLM which experts are local while weights load."""

import torch
from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager


class DwdpExpertMap(ExpertMapManager):
    """An ExpertMapManager by which a layer loads only `local` of its `num_experts` experts.

    Its parallel config stays vLLM's own, so the rest of vLLM doesn't see expert parallelism.
    """

    def __init__(self, stock: ExpertMapManager, num_experts: int, local: range) -> None:
        self.__dict__.update(stock.__dict__)
        expert_map = torch.full((num_experts,), -1, dtype=torch.int32, device="cpu")
        expert_map[local.start : local.stop] = torch.arange(
            len(local), dtype=torch.int32, device="cpu"
        )
        self._local_num_experts = len(local)
        self._expert_map = expert_map
        self._expert_mask = None
        self._routing_tables = None
        self._placement_strategy = "linear"

    def show_all(self) -> None:
        """Drop the map: a bound layer has every expert, at its global index."""
        self._local_num_experts = self.global_num_experts
        self._expert_map = None
