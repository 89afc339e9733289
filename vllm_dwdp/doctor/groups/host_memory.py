# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Whether processes of this host can share memory, and the kernel's limits for it."""

import resource

from vllm_dwdp.doctor import example_model
from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.child import ProbeError
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.groups.installation import core, pytorch
from vllm_dwdp.doctor.host import Host
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.memory import limits

RDMA = "/sys/class/infiniband"

UNREADABLE = Case(
    Status.FAIL,
    "the other process can't read the page",
    "Use a plain Linux kernel with memory files that accept seals, and a directory for temporary "
    "files (TMPDIR) that this user can write to and that takes sockets.",
)


@check(
    "shared page",
    "whether one process reads a page of a sealed memory file (memfd) that another has handed over "
    "through a Unix socket, with the code that ranks use",
    UNREADABLE,
    needs=(core, pytorch),
)
def shared_page(host: Host) -> Finding:
    try:
        reason = host.ask("host_memory")["reason"]
    except ProbeError as error:
        return UNREADABLE.found(str(error))
    return UNREADABLE.found(reason) if reason else ok("another process has read it")


CLOSED_PROC = Case(
    Status.WARN,
    "the other process can't open it",
    "Let processes of one user open each other's files in /proc (no hidepid, no sandbox), or set "
    "dwdp.rendezvous to 127.0.0.1 and a free port.",
)


@check(
    "files in /proc",
    "whether a process can open a memory file of its parent through /proc, as engines do to learn "
    "the port of the start-up store",
    CLOSED_PROC,
    needs=(shared_page,),
)
def start_board(host: Host) -> Finding:
    reason = host.ask("host_memory")["board"]
    return CLOSED_PROC.found(reason) if reason else ok("another process can open them")


NO_POLICY = Case(
    Status.WARN,
    "the kernel doesn't let a process prefer a node for its memory",
    "Give the container CAP_SYS_NICE, or a seccomp profile that allows mbind; until then reads may "
    "be slower.",
)


@check(
    "NUMA",
    "the NUMA nodes of this host, and whether memory can be put on one of them",
    NO_POLICY,
    needs=(shared_page,),
)
def numa(host: Host) -> Finding:
    found = host.ask("host_memory")
    nodes, own = found["nodes"], found["node"]
    cores = f"those of node {own}" if own in nodes else "those of several nodes"
    text = f"nodes with cores: {', '.join(map(str, nodes)) or 'unknown'}; this process has {cores}"
    if found["warnings"]:
        return NO_POLICY.found("; ".join([text, *found["warnings"]]))
    return ok(text)


FEW_MAPPINGS = Case(
    Status.WARN,
    f"they are too few for {example_model.DESCRIPTION}",
    "Raise vm.max_map_count on the host, as root, to the number that the text names; or make "
    "groups smaller with dwdp_size. GPUs need fewer.",
)


@check("memory mappings", "vm.max_map_count, the mappings that a process may have", FEW_MAPPINGS)
def mappings(host: Host) -> Finding:
    limit = int(host.path("/proc/sys/vm/max_map_count").read_text())
    layout = example_model.layout_of(host.options.num_ranks)
    needed = limits.num_maps_at_least(
        layout.placement,
        num_layers=layout.num_layers,
        tensors_per_layer=len(example_model.TENSORS),
    )
    try:
        limits.check_map_budget(needed, max_map_count=limit)
    except limits.LimitError as error:
        return FEW_MAPPINGS.found(str(error))
    return ok(f"vm.max_map_count={limit}; {_example(layout)} needs {needed}")


FEW_FILES = Case(
    Status.FAIL,
    f"the hard limit is too low for {example_model.DESCRIPTION}",
    "Raise the hard limit in the shell, service or container that starts vLLM: `ulimit -n` with "
    "the number that the text names, LimitNOFILE in systemd, --ulimit nofile in Docker.",
)


@check("open files", "the limits on descriptors (ulimit -n)", FEW_FILES)
def open_files(host: Host) -> Finding:
    layout = example_model.layout_of(host.options.num_ranks)
    try:
        wanted = limits.check_descriptors(limits.num_descriptors_needed(layout, has_files=True))
    except limits.LimitError as error:
        return FEW_FILES.found(str(error))
    soft, hard = map(_limit_text, resource.getrlimit(resource.RLIMIT_NOFILE))
    return ok(f"soft limit {soft}, hard limit {hard}; {_example(layout)} needs {wanted}")


def _example(layout: RankLayout) -> str:
    return f"a group of {layout.num_ranks} ranks with {example_model.DESCRIPTION}"


def _limit_text(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


LOCKED = Case(
    Status.WARN,
    "there are RDMA devices, and locked memory is limited",
    "Raise it before NIXL moves KV caches by RDMA: `ulimit -l unlimited`, LimitMEMLOCK in systemd, "
    "--ulimit memlock=-1 in Docker.",
)


@check(
    "locked memory",
    "the limit on locked memory (ulimit -l), which RDMA needs and dwdp doesn't",
    LOCKED,
)
def locked_memory(host: Host) -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit >> 20} MiB"
    devices = host.names(RDMA, "*")
    if devices and limit != resource.RLIM_INFINITY:
        return LOCKED.found(f"{text}, and RDMA devices {', '.join(devices)}")
    return ok(f"{text}; {len(devices)} RDMA devices")


GROUP = Group(
    "Memory of this host",
    (shared_page, start_board, numa, mappings, open_files, locked_memory),
)
