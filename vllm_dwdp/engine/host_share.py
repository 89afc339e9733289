# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many of a rank's experts lie in host memory: as the user says, or as few as must.

* Decided when the model is built and before a weight is read: its shapes are known by then.
* All ranks of a group have the same number, the largest that one of them needs.
"""

import bisect
import dataclasses
import json
import socket
from collections.abc import Sequence

import psutil
from vllm.logger import init_logger

from vllm_dwdp.config import AUTO, ConfigError, DwdpConfig, FetchMode, usable_slots
from vllm_dwdp.engine.routed_experts import DwdpRoutedExperts
from vllm_dwdp.group.session import Gather
from vllm_dwdp.layout import LayerLayout, TensorLayout
from vllm_dwdp.memory.estimate import MemoryEstimate, gib, host_bytes
from vllm_dwdp.memory.limits import LimitError
from vllm_dwdp.placement import Placement

logger = init_logger("vllm.dwdp")

KEPT_FOR_VLLM = 0.2
"""Of the memory that vLLM may use: what is left for its KV cache and for activations."""


def choose_host_experts(
    config: DwdpConfig,
    layers: Sequence[DwdpRoutedExperts],
    layouts: Sequence[LayerLayout],
    *,
    rank: int,
    other_bytes: int,
    budget_bytes: int,
    gather: Gather,
) -> None:
    """Under 'auto', give all layers a placement that fits. Every rank of the group calls it.

    budget_bytes: of GPU memory, for all but a KV cache whose size was given. Raises ConfigError if
    the ranks were told different numbers.
    """
    number = config.given_host_experts
    room = round((1 - KEPT_FOR_VLLM) * budget_bytes)
    if config.host_experts == AUTO:
        number = fewest_host_experts(config, layouts, rank=rank, other_bytes=other_bytes, room=room)
    own = json.dumps([config.host_experts, number]).encode()
    told, numbers = zip(*map(json.loads, gather("host experts", own)), strict=True)
    if len(set(told)) > 1:
        raise ConfigError(
            f"dwdp.host_experts must be the same for all ranks of a group, got {list(told)}."
        )
    if config.host_experts == AUTO:
        for layer in layers:
            layer.placement = with_host_experts(layer.placement, max(numbers))
        logger.info(
            "host_experts=auto: %d of a rank's experts in every layer lie in host memory, so that "
            "its weights fit into %s of GPU memory.",
            max(numbers),
            gib(room),
        )


def check_host_memory(layouts: Sequence[LayerLayout], gather: Gather, *, rank: int) -> None:
    """Raise LimitError where a host lacks the memory for what its ranks will keep there.

    Every rank of the group calls it.
    """
    free = psutil.virtual_memory().available
    own = socket.gethostname(), host_bytes(layouts, rank), free
    found = [json.loads(payload) for payload in gather("host memory", json.dumps(own).encode())]
    needs = [needed for host, needed, _ in found if host == own[0]]
    if sum(needs) > free:
        raise LimitError(
            f"expected {gib(sum(needs))} of free memory on host {own[0]} for experts of "
            f"{len(needs)} rank(s), got {gib(free)}; free memory there, lower "
            "dwdp.host_experts, or start more ranks on other hosts."
        )


def fewest_host_experts(
    config: DwdpConfig,
    layouts: Sequence[LayerLayout],
    *,
    rank: int,
    other_bytes: int,
    room: int,
) -> int:
    """So many that the rank's weights and slots fit into `room`; at most all but one."""
    num_slots = 0
    if config.fetch != FetchMode.DIRECT:
        num_slots = usable_slots(config.num_slots, len(layouts))

    def fits(number: int) -> bool:
        moved = [tuple(_on_host(tensor, number) for tensor in layer) for layer in layouts]
        estimate = MemoryEstimate.make(
            moved, rank=rank, num_slots=num_slots, other_bytes=other_bytes
        )
        return estimate.in_all <= room

    most = _most(layouts[0][0].placement)
    return bisect.bisect_left(range(most), True, key=fits)


def with_host_experts(placement: Placement, number: int) -> Placement:
    """The same ranges; as many of the experts in host memory as leave each rank one."""
    return dataclasses.replace(placement, host_experts=min(number, _most(placement)))


def _on_host(tensor: TensorLayout, number: int) -> TensorLayout:
    return dataclasses.replace(tensor, placement=with_host_experts(tensor.placement, number))


def _most(placement: Placement) -> int:
    return min(end - start for start, end in placement.ranges) - 1
