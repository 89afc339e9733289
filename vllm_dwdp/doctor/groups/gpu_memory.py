# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Whether the memory of GPUs can be shared: virtual memory, types of handles, pairs of GPUs."""

from collections.abc import Sequence

from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.groups.gpus import WITH_FABRIC, cuda_driver, version_text
from vllm_dwdp.doctor.groups.installation import core
from vllm_dwdp.doctor.host import Host

CHANNELS = "/dev/nvidia-caps-imex-channels"
ONE_HOST = "keep all ranks of a group on one host, which needs no fabric handles"
MOST_PAIRS = 16

REFUSED = Case(
    Status.FAIL,
    "the core refuses a GPU",
    "Leave this GPU out, or use one with virtual memory management; in virtual machines and "
    "sandboxes (gVisor) it may be missing.",
)


@check(
    "virtual memory",
    "whether the core can allocate memory of each GPU that others can map",
    REFUSED,
    needs=(cuda_driver, core),
)
def virtual_memory(host: Host) -> Finding:
    refused = host.ask("gpu_memory")["refused"]
    if reasons := [reason for reason in refused if reason]:
        return REFUSED.found("; ".join(dict.fromkeys(reasons)))
    return ok(f"all {len(refused)} GPUs have it")


NO_DESCRIPTORS = Case(
    Status.WARN,
    "a GPU can be shared by fabric handles only",
    "Expect ranks to use fabric handles; to have file descriptors, update the driver, or leave a "
    "container's sandbox.",
)


@check(
    "file descriptors",
    "whether memory of each GPU can be handed over as a file descriptor, within one host",
    NO_DESCRIPTORS,
    needs=(virtual_memory,),
)
def descriptor_handles(host: Host) -> Finding:
    obstacles = [text for text in host.ask("gpu_memory")["descriptors"] if text]
    return NO_DESCRIPTORS.found(obstacles[0]) if obstacles else ok("all GPUs support them")


NO_FABRIC = Case(
    Status.NOT_HERE,
    "the driver or a GPU doesn't know them",
    f"For groups over several hosts use GPUs of one NVLink domain (GB200 NVL72, for example); "
    f"otherwise {ONE_HOST}.",
)
NOT_SET_UP = Case(
    Status.NOT_HERE,
    f"none can be made, and there is no device in {CHANNELS}",
    "For groups over several hosts start nvidia-imex on each, and give the container an IMEX "
    f"channel; otherwise {ONE_HOST}.",
)
NOT_PERMITTED = Case(
    Status.WARN,
    f"none can be made, although there is a device in {CHANNELS}",
    "For groups over several hosts start nvidia-imex on each, and let this user open "
    f"{CHANNELS}/channel0; otherwise {ONE_HOST}.",
)


@check(
    "fabric handles",
    "whether memory of each GPU can be handed over to other hosts of an NVLink domain: a page is "
    "allocated and exported",
    *(NO_FABRIC, NOT_SET_UP, NOT_PERMITTED),
    needs=(virtual_memory,),
)
def fabric_handles(host: Host) -> Finding:
    found = host.ask("gpus")
    if found["version"] < WITH_FABRIC:
        return NO_FABRIC.found(f"they came with CUDA 12.3, the driver is for {version_text(found)}")
    if not all(gpu["has_fabric"] for gpu in found["gpus"]):
        return NO_FABRIC.found("a GPU doesn't support them")
    obstacles = [text for text in host.ask("gpu_memory")["fabric"] if text]
    if obstacles:
        case = NOT_PERMITTED if host.names(CHANNELS, "channel*") else NOT_SET_UP
        return case.found(obstacles[0])
    return ok("a page of each GPU was exported")


NO_PEERS = Case(
    Status.FAIL,
    "no two GPUs reach each other",
    "Put ranks on GPUs that reach each other: `nvidia-smi topo -p2p r` shows them. MIG, virtual "
    "machines and access control of PCIe switches (ACS) prevent it.",
)
SOME_PEERS = Case(
    Status.WARN,
    "some GPUs don't reach some others",
    "Make groups (dwdp_size) of GPUs that reach each other; `nvidia-smi topo -p2p r` shows them.",
)


def judge_pairs(works: Sequence[Sequence[bool]], text: str) -> Finding:
    """works: by reader and owner. text: why the first pair doesn't work, or ""."""
    gpus = range(len(works))
    pairs = [(owner, reader) for reader in gpus for owner in gpus if owner != reader]
    failed = [pair for pair in pairs if not works[pair[1]][pair[0]]]
    if not pairs:
        return ok("there is one GPU, and it has no peers")
    if not failed:
        return ok(f"all {len(pairs)} pairs of {len(works)} GPUs")
    more = f" and {len(failed) - MOST_PAIRS} more" if len(failed) > MOST_PAIRS else ""
    named = ", ".join(f"{owner}->{reader}" for owner, reader in failed[:MOST_PAIRS])
    case = SOME_PEERS if any(works[r][o] and works[o][r] for o, r in pairs) else NO_PEERS
    return case.found(f"pairs that can't (owner->reader): {named}{more}, of {len(pairs)}{text}")


@check(
    "peer access",
    "for each pair of GPUs, whether the driver says that one can read the other's memory",
    *(NO_PEERS, SOME_PEERS),
    needs=(cuda_driver,),
)
def peer_access(host: Host) -> Finding:
    return judge_pairs(host.ask("gpus")["access"], "")


@check(
    "pages of peers",
    "for each pair of GPUs, whether one process reads a page that another has handed over as a "
    "file descriptor, with the code that ranks use",
    *(NO_PEERS, SOME_PEERS),
    needs=(descriptor_handles,),
)
def peer_pages(host: Host) -> Finding:
    reasons = host.ask("gpu_memory")["reasons"]
    if not reasons:
        return NO_PEERS.found("no page could be handed over as a file descriptor")
    own = [reasons[gpu][gpu] for gpu in range(len(reasons)) if reasons[gpu][gpu]]
    if own:
        return NO_PEERS.found(f"not even another process of the same GPU: {own[0]}")
    works = [[reason is None for reason in of_reader] for of_reader in reasons]
    first = next((text for of_reader in reasons for text in of_reader if text), None)
    return judge_pairs(works, f"; {first}" if first else "")


NO_HOST_MEMORY = Case(
    Status.NOT_HERE,
    "a GPU can't map memory of the host",
    "Leave out dwdp.host_experts; nothing else needs it.",
)


@check(
    "experts in host memory",
    "whether each GPU supports what dwdp.host_experts needs",
    NO_HOST_MEMORY,
    needs=(cuda_driver,),
)
def gpu_host_memory(host: Host) -> Finding:
    if all(gpu["has_host_memory"] for gpu in host.ask("gpus")["gpus"]):
        return ok("all GPUs can map memory of the host")
    return NO_HOST_MEMORY.found("a GPU lacks HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED")


GROUP = Group(
    "Memory of GPUs",
    (virtual_memory, descriptor_handles, fabric_handles, peer_access, peer_pages, gpu_host_memory),
)
