# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Reports on a rank that has bound its experts: figures for `dwdp_stats`, and log lines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity

from vllm_dwdp.device.bandwidth import Bandwidths
from vllm_dwdp.engine.moe.context import MoeContext
from vllm_dwdp.engine.moe.graph_fence import decode_sizes
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts
from vllm_dwdp.engine.setup.format_checks import RAN_ON_GPU
from vllm_dwdp.fetch.decode_report import DecodeModel, report_decode
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.memory.estimate import host_bytes
from vllm_dwdp.memory.kv_room import KvRoom
from vllm_dwdp.rank.experts import RankExperts

logger = init_logger("vllm.dwdp")


def expert_stats(context: MoeContext, experts: RankExperts) -> dict[str, Any]:
    """Figures of what a rank owns, maps and has read from disk; sizes in bytes."""
    layers, read_count = context.layers, context.read_count
    local = layers[0].local_experts
    return {
        "num_layers": len(layers),
        "num_experts": layers[0].global_num_experts,
        "experts_owned": [local.start, local.stop],
        "expert_bytes_owned": experts.shard.num_block_bytes,
        "expert_bytes_from_peers": experts.views.num_peer_bytes,
        "expert_bytes_extra": experts.views.num_extra_bytes,
        "expert_bytes_private": experts.views.num_private_bytes,
        "num_maps": experts.views.num_maps,
        "expert_bytes_read": read_count.num_expert_bytes,
        "bytes_read": read_count.num_bytes,
    }


def kv_stats(vllm_config: Any, kv_cache_config: Any, experts: RankExperts) -> dict[str, int]:
    """How much KV cache a rank has, for `dwdp_stats` and the log; kv_cache_config: vLLM's."""
    layout, views = experts.layout, experts.views
    held_bytes = (
        experts.shard.num_block_bytes
        - host_bytes(layout.layouts, layout.rank)
        + views.num_private_bytes
        + views.num_extra_bytes
        + (experts.slots.num_bytes if experts.slots else 0)
    )
    kv_bytes = sum(tensor.size for tensor in kv_cache_config.kv_cache_tensors)
    if not kv_bytes:
        return {}
    num_tokens, _ = get_kv_cache_capacity(vllm_config, kv_cache_config)
    room = KvRoom.make(layout, num_tokens=num_tokens, kv_bytes=kv_bytes, held_bytes=held_bytes)
    logger.info(
        "The KV cache of this rank has room for %d tokens; with all experts in its own memory it "
        "would be %d, with expert parallelism %d.",
        *room,
    )
    return {f"kv_{name}": value for name, value in room._asdict().items()}


def log_decode(
    vllm_config: Any,
    layers: Sequence[DwdpRoutedExperts],
    layout: RankLayout,
    *,
    bandwidths: Bandwidths | None,
) -> None:
    """Log how many bytes decode steps will read from peers.

    bandwidths: None if no rank lacks an expert; nothing is logged then.
    """
    if bandwidths is None:
        return
    model = DecodeModel(
        missing_bytes=layout.all_missing_bytes,
        num_experts=layers[0].global_num_experts,
        top_k=layers[0].moe_config.experts_per_token,
        bandwidths=bandwidths,
    )
    has_kv_transfer = vllm_config.kv_transfer_config is not None
    report_decode(model, decode_sizes(vllm_config), has_kv_transfer=has_kv_transfer)


def warn_of_untried_kernels(layers: Iterable[DwdpRoutedExperts]) -> None:
    """Name the kernels of these layers, on a GPU, that nobody has run over shared memory yet."""
    kernels = {type(layer.quant_method.moe_kernel.fused_experts).__name__ for layer in layers}
    for kernel in sorted(kernels - RAN_ON_GPU):
        logger.warning(
            "vLLM's kernel %s has not been tried over memory that ranks of a dwdp group share; "
            "compare outputs with those of vLLM without dwdp, or choose with --moe-backend another "
            "kernel that vLLM has for this format.",
            kernel,
        )


def log_start(stats: Mapping[str, Any]) -> None:
    """Log one INFO line with the figures of this rank."""
    start, end = stats["experts_owned"]
    logger.info(
        "DWDP rank %d of %d (group %d of size %d): %d MoE layers, experts [%d, %d) of %d, "
        "fetch=%s on %s memory with %.1f MiB of slots; %.1f MiB owned, %.1f MiB mapped from "
        "peers, %.1f MiB extra, %.1f MiB private, %d maps; read %.1f MiB of experts from disk; %s",
        *(stats[key] for key in ("rank", "job_size", "group", "dwdp_size", "num_layers")),
        *(start, end, stats["num_experts"]),
        stats["fetch_config"],
        stats["memory"],
        stats["slot_bytes"] / 2**20,
        stats["expert_bytes_owned"] / 2**20,
        stats["expert_bytes_from_peers"] / 2**20,
        stats["expert_bytes_extra"] / 2**20,
        stats["expert_bytes_private"] / 2**20,
        stats["num_maps"],
        stats["expert_bytes_read"] / 2**20,
        ", ".join(f"{name} {value:.2f} s" for name, value in stats["startup_seconds"].items()),
    )
