# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds out before loading whether the ranks of a group can read each other's memory."""

from vllm.logger import init_logger

from vllm_dwdp._core import HandleType
from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.engine.worker.host_share import check_told_alike
from vllm_dwdp.engine.worker.shared_gpus import GpuUse, check_shared_gpus
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.session import GroupSession
from vllm_dwdp.memory.handle import TYPE_NAMES

logger = init_logger("vllm.dwdp")


def try_peers(
    config: DwdpConfig,
    session: GroupSession,
    memory: RankMemory,
    *,
    job_rank: int,
    kv_cache_bytes: int | None,
) -> HandleType | None:
    """The type of handle by which all pairs read each other's memory; None for a rank alone.

    kv_cache_bytes: the size of the KV cache, if the user gave it. Raises what
    GroupSession.try_peers raises, ConfigError, and LimitError.
    """
    check_told_alike(config, session.gather)
    probe = PeerProbe(memory.driver, job_rank=job_rank, uses_host=config.host_experts != 0)
    handle_type = session.try_peers(probe)
    if handle_type is None:
        return None
    _check_host_handles(config, handle_type)
    size = len(session.job_ranks)
    logger.info(
        "All %d pairs of the group's %d ranks read each other's %s memory, handed over as %s.",
        *(size * (size - 1), size, memory.kind, TYPE_NAMES[handle_type]),
    )
    own = GpuUse(memory.gpu_name, kv_cache_bytes)
    check_shared_gpus(own, session.gather, first_rank=session.job_ranks.start)
    return handle_type


def _check_host_handles(config: DwdpConfig, handle_type: HandleType) -> None:
    if config.host_experts and handle_type is not HandleType.FILE_DESCRIPTOR:
        raise ConfigError(
            "dwdp.host_experts needs ranks that hand each other memory as file descriptors, got "
            f"{TYPE_NAMES[handle_type]}; leave it out, or make groups of ranks on one host "
            "(dwdp.dwdp_size)."
        )
