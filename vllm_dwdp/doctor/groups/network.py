# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The name of this host, and its loopback."""

from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.host import Host

UNRESOLVED = Case(
    Status.WARN,
    "it doesn't resolve",
    "Add this host's name to /etc/hosts: PyTorch looks its address up when a worker starts.",
)
ELSEWHERE = Case(
    Status.WARN,
    "it leads to an address of another host",
    "Correct this host's name in /etc/hosts or DNS, or set VLLM_HOST_IP to an own address.",
)


@check("host name", "whether this host's own name resolves to it", *(UNRESOLVED, ELSEWHERE))
def host_name(host: Host) -> Finding:
    found = host.ask("network")
    if found["name_error"]:
        return UNRESOLVED.found(f"it doesn't resolve: {found['name_error']}")
    if not found["is_local"]:
        return ELSEWHERE.found("it resolves to an address that isn't of this host")
    return ok("it resolves to this host")


NO_LOOPBACK = Case(
    Status.FAIL,
    "a connection fails",
    "Bring the loopback interface up (`ip link set lo up`), and let the firewall pass it: ranks "
    "meet there.",
)


@check("loopback", "whether this process can connect to itself at a port of 127.0.0.1", NO_LOOPBACK)
def loopback(host: Host) -> Finding:
    reason = host.ask("network")["loopback_error"]
    return NO_LOOPBACK.found(reason) if reason else ok("a connection over 127.0.0.1 works")


GROUP = Group("Network", (host_name, loopback))
