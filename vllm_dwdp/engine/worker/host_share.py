# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Decides how many of a rank's experts lie in host memory: the user's, or as few as possible.

* This happens after the model is built, when all shapes are known, and before weights are read.
* All ranks of a group have the same number, the largest that one of them needs.
"""

import dataclasses
import json
import socket
import sys
from collections.abc import Sequence

import psutil
from vllm.logger import init_logger

from vllm_dwdp.config import AUTO, ConfigError, DwdpConfig, FetchMode
from vllm_dwdp.engine.compat import cgroup_memory_limit
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts
from vllm_dwdp.group.session import Gather
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import TensorLayout
from vllm_dwdp.memory.estimate import MemoryEstimate, gib, host_bytes
from vllm_dwdp.memory.limits import LimitError

logger = init_logger("vllm.dwdp")

SHARE_KEPT_FOR_VLLM = 0.2
"""The fraction of vLLM's memory that weights leave free for the KV cache and activations."""


def check_told_alike(config: DwdpConfig, gather: Gather) -> None:
    """Raise ConfigError if `host_experts` differs between ranks. Every rank calls this."""
    own = json.dumps(config.host_experts).encode()
    told = [json.loads(data) for data in gather("host_experts as told", own)]
    if len(set(told)) > 1:
        raise ConfigError(
            f"dwdp.host_experts must be the same for all ranks of a group, got {told}."
        )


def choose_host_experts(
    config: DwdpConfig,
    layers: Sequence[DwdpRoutedExperts],
    layout: RankLayout,
    *,
    other_bytes: int,
    budget_bytes: int,
    gather: Gather,
) -> None:
    """For 'auto', give all layers a placement that fits. Every rank of the group calls this.

    other_bytes: of weights that aren't experts. budget_bytes: of GPU memory, for weights and all
    else except a KV cache whose size is given.
    """
    if config.host_experts != AUTO:
        return
    room = round((1 - SHARE_KEPT_FOR_VLLM) * budget_bytes)
    own = fewest_host_experts(config, layout, other_bytes=other_bytes, room=room)
    number = max(map(int, gather("host experts", str(own).encode())))
    for layer in layers:
        layer.placement = with_host_experts(layer.placement, number)
    logger.info(
        "host_experts=auto: %d of a rank's experts in every layer lie in host memory, to keep "
        "its weights within %s of GPU memory.",
        number,
        gib(room),
    )


def check_host_memory(config: DwdpConfig, layout: RankLayout, gather: Gather) -> None:
    """Raise LimitError if this host lacks the memory in which its ranks load their experts.

    Every rank of the group calls this. Ranks of other groups on the host are not counted, and
    neither is what a single NUMA node has.
    """
    free = min(psutil.virtual_memory().available, cgroup_memory_limit() or sys.maxsize)
    needed = loading_bytes(layout) if config.host_experts else 0
    own = socket.gethostname(), needed, free
    found = [json.loads(payload) for payload in gather("host memory", json.dumps(own).encode())]
    needs = [needed for host, needed, _ in found if host == own[0]]
    if sum(needs) > free:
        raise LimitError(
            f"expected {gib(sum(needs))} of free memory on host {own[0]}, where {len(needs)} "
            f"rank(s) load their experts before they move them, got {gib(free)}; free memory "
            "there, or start more ranks (--data-parallel-size)."
        )


def loading_bytes(layout: RankLayout) -> int:
    """The most host memory that a rank takes: for all its experts, and for blocks of one layer.

    vLLM prepares a layer on the GPU and moves it back to pinned memory, which PyTorch allocates in
    powers of two.
    """
    num_local = len(layout.placement.local_experts(layout.rank))
    loaded = [num_local * t.tensor.expert_bytes for tensors in layout.layouts for t in tensors]
    pinned = sum(1 << (num_bytes - 1).bit_length() for num_bytes in loaded)
    return pinned + max(host_bytes([one], layout.rank) for one in layout.layouts)


def fewest_host_experts(
    config: DwdpConfig, layout: RankLayout, *, other_bytes: int, room: int
) -> int:
    """The smallest number with which the rank's weights and slots fit into `room` bytes.

    If no number is enough, all but one of the rank's experts.
    """
    if config.fetch == FetchMode.DIRECT:
        layout = layout.with_slots(0)

    def fits(number: int) -> bool:
        moved = tuple(tuple(_on_host(t, number) for t in tensors) for tensors in layout.layouts)
        moved_layout = dataclasses.replace(layout, layouts=moved)
        estimate = MemoryEstimate.make(
            moved_layout, other_bytes=other_bytes, extra_bytes=config.extra_expert_bytes
        )
        return estimate.in_all <= room

    most = max(_most(tensors[0].placement) for tensors in layout.layouts)
    return next((number for number in range(most) if fits(number)), most)


def with_host_experts(placement: Placement, number: int) -> Placement:
    """The placement with `number` experts of each rank in host memory.

    Every rank keeps at least one expert on its GPU.
    """
    return dataclasses.replace(placement, host_experts=min(number, _most(placement)))


def _on_host(tensor: TensorLayout, number: int) -> TensorLayout:
    return dataclasses.replace(tensor, placement=with_host_experts(tensor.placement, number))


def _most(placement: Placement) -> int:
    return min(end - start for start, end in placement.ranges) - 1
