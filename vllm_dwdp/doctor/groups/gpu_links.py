# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What connects GPUs: NVLink within a host, and an NVLink domain between hosts."""

import os
import re

from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.child import ProbeError
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.groups.gpu_memory import CHANNELS, ONE_HOST
from vllm_dwdp.doctor.groups.gpus import cuda_driver
from vllm_dwdp.doctor.host import Host

COLUMN = re.compile(r"^GPU\d+$")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
"""nvidia-smi underlines its headings."""

NO_SMI = Case(
    Status.NOT_HERE,
    "nvidia-smi isn't in PATH",
    "Add nvidia-smi, which comes with the driver, to PATH to learn more.",
)
SMI_FAILS = Case(
    Status.WARN,
    "nvidia-smi fails",
    "See to the error of nvidia-smi; this line isn't known without it.",
)


def ask_smi(host: Host) -> dict[str, str] | Finding:
    """The outputs of nvidia-smi, or the finding that there are none."""
    if host.program("nvidia-smi") is None:
        return NO_SMI.found("nvidia-smi isn't in PATH")
    try:
        said: dict[str, str] = host.ask("nvidia_smi")
    except ProbeError as error:
        return SMI_FAILS.found(str(error))
    return said


def links_of(topology: str) -> dict[tuple[str, str], str]:
    """By pair of GPUs, how `nvidia-smi topo -m` says that they are connected, NV18 for example."""
    rows = [ESCAPES.sub("", line).split() for line in topology.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) > 1 and COLUMN.match(row[0])}
    names = [name for name in next((row for row in rows if row), []) if COLUMN.match(name)]
    links = {
        (name, other): link
        for name, row in table.items()
        if name in names
        for other, link in zip(names, row, strict=False)
    }
    return {pair: link for pair, link in links.items() if pair[0] < pair[1]}


ONE_GPU = Case(Status.NOT_HERE, "there is one GPU", "Use several GPUs to share experts by NVLink.")
NO_NVLINK = Case(
    Status.WARN,
    "a pair of GPUs isn't connected by NVLink",
    "Expect copies at the speed of PCIe, which only large steps hide; use GPUs that NVLink "
    "connects, or see in docs/limits.md when DWDP pays.",
)


@check(
    "NVLink",
    "how `nvidia-smi topo -m` says that GPUs are connected",
    *(NO_SMI, SMI_FAILS, ONE_GPU, NO_NVLINK),
    needs=(cuda_driver,),
)
def nvlink(host: Host) -> Finding:
    said = ask_smi(host)
    if isinstance(said, Finding):
        return said
    links = links_of(said["topology"])
    if not links:
        return ONE_GPU.found("nvidia-smi names no pair of GPUs")
    kinds = ", ".join(f"{list(links.values()).count(k)} x {k}" for k in sorted({*links.values()}))
    if all(link.startswith("NV") for link in links.values()):
        return ok(f"between all {len(links)} pairs: {kinds}")
    return NO_NVLINK.found(f"pairs of GPUs by connection: {kinds}")


MIG_IS_ON = Case(
    Status.FAIL,
    "a GPU is divided by MIG",
    "Switch MIG off (`nvidia-smi -mig 0` as root): parts of a GPU have no peer access.",
)


@check(
    "MIG",
    "whether a GPU is divided into several (Multi-Instance GPU)",
    *(NO_SMI, SMI_FAILS, MIG_IS_ON),
    needs=(cuda_driver,),
)
def mig(host: Host) -> Finding:
    said = ask_smi(host)
    if isinstance(said, Finding):
        return said
    rows = [line.split(", ") for line in said["gpus"].splitlines() if line.strip()]
    divided = [row[0] for row in rows if row[-1].strip() == "Enabled"]
    if divided:
        return MIG_IS_ON.found(f"GPUs {', '.join(divided)} are divided")
    return ok("no GPU is divided")


NO_CHANNELS = Case(
    Status.NOT_HERE,
    f"there is no {CHANNELS}",
    f"For groups over several hosts have the driver make IMEX channels, and give them to the "
    f"container; otherwise {ONE_HOST}.",
)
CLOSED_CHANNELS = Case(
    Status.WARN,
    "this user can't open a channel",
    "Give this user read and write access to {path}, and the container the device.",
)


@check(
    "IMEX channels",
    f"whether this user can open a device in {CHANNELS}, which fabric handles need",
    *(NO_CHANNELS, CLOSED_CHANNELS),
    needs=(cuda_driver,),
)
def imex_channels(host: Host) -> Finding:
    names = host.names(CHANNELS, "channel*")
    if not names:
        return NO_CHANNELS.found(f"no channel in {CHANNELS}")
    paths = {name: host.path(f"{CHANNELS}/{name}") for name in names}
    usable = [name for name, path in paths.items() if os.access(path, os.R_OK | os.W_OK)]
    if not usable:
        return CLOSED_CHANNELS.found(f"{', '.join(names)} can't be opened", path=paths[names[0]])
    return ok(f"{', '.join(usable)} can be opened")


NO_IMEX = Case(
    Status.NOT_HERE,
    "nvidia-imex-ctl isn't in PATH",
    f"For groups over several hosts install nvidia-imex on each; otherwise {ONE_HOST}.",
)
IMEX_NOT_READY = Case(
    Status.WARN,
    "nvidia-imex isn't ready",
    "Start nvidia-imex on every host of the domain; `nvidia-imex-ctl -N` shows which hosts are "
    "connected.",
)


@check(
    "nvidia-imex",
    "what `nvidia-imex-ctl -q` says of the service that fabric handles need",
    *(NO_IMEX, IMEX_NOT_READY),
    needs=(cuda_driver,),
)
def imex_service(host: Host) -> Finding:
    if host.program("nvidia-imex-ctl") is None:
        return NO_IMEX.found("nvidia-imex-ctl isn't in PATH")
    state = host.ask("imex")
    return ok(state) if state == "READY" else IMEX_NOT_READY.found(f"it says '{state}'")


GROUP = Group("Links between GPUs", (nvlink, mig, imex_channels, imex_service))
