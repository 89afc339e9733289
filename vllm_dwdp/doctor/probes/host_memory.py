# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Shares a page of this host's memory between two processes, with the driver that ranks use."""

from typing import Any

from vllm_dwdp.device import rank_memory
from vllm_dwdp.device.numa import read_numa_nodes
from vllm_dwdp.doctor.probes.pages import read_elsewhere
from vllm_dwdp.group.handover.peer_probe import PeerProbe


def look() -> dict[str, Any]:
    """reason: why the other process can't read the page. board: see page_reader.

    nodes: the NUMA nodes with cores. warnings: what the driver could not do as asked.
    """
    memory = rank_memory("cpu", 0)
    said = read_elsewhere([PeerProbe(memory.driver, job_rank=0)], kind=memory.kind)
    return {
        "reason": said["reasons"][0][0],
        "board": said["board"],
        "nodes": sorted(node for node, cores in read_numa_nodes().items() if cores),
        "node": memory.numa_node,
        "warnings": memory.warnings,
    }
