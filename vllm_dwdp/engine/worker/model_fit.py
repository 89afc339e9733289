# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Decides before loading which memory holds which experts, and refuses a model that can't fit."""

import itertools

import torch

from vllm_dwdp._core import HandleType
from vllm_dwdp.config import DwdpConfig, usable_slots
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.engine.moe.adoption import layer_layout
from vllm_dwdp.engine.moe.context import MoeContext
from vllm_dwdp.engine.worker.host_share import check_host_memory, choose_host_experts
from vllm_dwdp.engine.worker.memory_check import MemoryCheck, VllmLimits
from vllm_dwdp.group.session import Gather
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.memory.limits import check_map_budget, ensure_descriptors, num_descriptors_needed


def rank_layout(
    context: MoeContext, config: DwdpConfig, *, rank: int, granularity: int
) -> RankLayout:
    """Lay out the layers as they are built, with as many slots as the options allow.

    granularity: bytes of a page. Raises ConfigError if the options ask for too many slots.
    """
    layouts = tuple(layer_layout(layer, granularity) for layer in context.layers)
    return RankLayout(layouts, rank, usable_slots(config.num_slots, len(layouts)))


class ModelFit:
    """Whether one rank's model fits into its memory.

    budget_bytes: the memory that vLLM may use in all; kv_cache_bytes: the size of its KV cache, if
    the user gave it.
    """

    def __init__(
        self,
        config: DwdpConfig,
        memory: RankMemory,
        gather: Gather,
        *,
        budget_bytes: int,
        kv_cache_bytes: int | None,
    ) -> None:
        self._config = config
        self._memory = memory
        self._gather = gather
        self._budget_bytes = budget_bytes
        self._kv_cache_bytes = kv_cache_bytes

    def check(
        self,
        model: torch.nn.Module,
        context: MoeContext,
        *,
        rank: int,
        job_rank: int,
        handle_type: HandleType | None,
    ) -> bool:
        """Choose the placement for host_experts='auto', and check that the model fits.

        Every rank calls this when the model is built, before weights are read. rank, job_rank: its
        numbers in the group and in the job. handle_type: as from GroupSession.try_peers.

        Returns whether every rank of the group has room for the slots that it may make. Raises
        LimitError if the model can't fit, ConfigError for too many slots, and RankFailed.
        """
        self._memory.give_back()
        config, granularity = self._config, self._memory.driver.granularity
        other_bytes = _other_bytes(model, context)
        layout = rank_layout(context, config, rank=rank, granularity=granularity)
        self._choose_host_experts(context, layout, other_bytes)
        layout = rank_layout(context, config, rank=rank, granularity=granularity)
        check_host_memory(config, layout, self._gather)
        given = self._kv_cache_bytes
        check = MemoryCheck(
            config,
            layout,
            job_rank=job_rank,
            other_bytes=other_bytes,
            may_use_host=self._memory.kind == "cuda" and handle_type is not HandleType.FABRIC,
            limits=VllmLimits(self._budget_bytes if given is None else None, given),
        )
        return check.run(self._memory, self._gather)

    def _choose_host_experts(
        self, context: MoeContext, layout: RankLayout, other_bytes: int
    ) -> None:
        budget_bytes = self._budget_bytes
        if (given := self._kv_cache_bytes) is not None:
            taken = other_bytes if self._memory.is_taken_at_once else 0
            budget_bytes = self._memory.free_bytes() + taken - given
        choose_host_experts(
            self._config,
            context.layers,
            layout,
            other_bytes=other_bytes,
            budget_bytes=budget_bytes,
            gather=self._gather,
        )


def check_kernel_limits(layout: RankLayout, *, is_on_host: bool) -> None:
    """Raise LimitError if the system allows fewer mappings or descriptors than are needed."""
    if is_on_host:
        tensors = itertools.chain.from_iterable(layout.layouts)
        check_map_budget(sum(len(t.blocks) + len(t.private_spans) for t in tensors))
    ensure_descriptors(num_descriptors_needed(layout, has_files=is_on_host))


def _other_bytes(model: torch.nn.Module, context: MoeContext) -> int:
    """Bytes of the weights that aren't expert tensors."""
    of_experts = set().union(*(layer.expert_tensor_ids() for layer in context.layers))
    return sum(p.nbytes for p in model.parameters() if id(p) not in of_experts)
