# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What this machine or container gives to ranks: memory, cores, calls of the kernel, a clock."""

import os
import time
from pathlib import Path

import psutil

from vllm_dwdp.doctor import cgroup
from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.groups.gpus import gib
from vllm_dwdp.doctor.host import Host

RANK_BYTES = int(2.3 * 2**30)
"""What the engine and the worker of a rank took with a tiny model on CPUs: 0.6 and 1.7 GiB."""
QUEUE_BYTES = 160 << 20
"""The size of vLLM's queue between an engine and its worker: 10 chunks of 16 MiB."""
SHM = "/dev/shm"
CLOCK_SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")

LITTLE_MEMORY = Case(
    Status.WARN,
    f"less is free than the processes of the ranks take before any weights, {gib(RANK_BYTES)} each",
    "Free memory, raise the container's limit, or start fewer ranks.",
)


@check(
    "memory",
    "the memory of this host that is free, and the limits of control groups (cgroups)",
    LITTLE_MEMORY,
)
def memory(host: Host) -> Finding:
    found, limit = psutil.virtual_memory(), cgroup.memory_limit_bytes(host)
    limit_text = "no limit of a control group known" if limit is None else f"limit {gib(limit)}"
    text = f"{gib(found.available)} free of {gib(found.total)}; {limit_text}"
    room = min(found.available, found.total if limit is None else limit)
    if room < RANK_BYTES * host.options.num_ranks:
        return LITTLE_MEMORY.found(f"{text}; {host.options.num_ranks} ranks")
    return ok(text)


NO_SHM = Case(
    Status.FAIL,
    "it isn't there or can't be written to",
    "Mount a tmpfs at /dev/shm (--shm-size in Docker, an emptyDir of medium Memory in Kubernetes): "
    "vLLM's processes talk through it.",
)
LITTLE_SHM = Case(
    Status.WARN,
    f"less than {QUEUE_BYTES >> 20} MiB of it are free for each rank",
    "Enlarge /dev/shm: --shm-size or --ipc=host in Docker, an emptyDir of medium Memory in "
    "Kubernetes. Experts need nothing of it.",
)


@check(
    SHM,
    "the room for vLLM's queues between its processes; experts lie elsewhere",
    *(NO_SHM, LITTLE_SHM),
)
def shm(host: Host) -> Finding:
    folder = host.path(SHM)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return NO_SHM.found(f"{SHM} isn't a folder that can be written to")
    free = psutil.disk_usage(str(folder)).free
    text = f"{gib(free)} free"
    is_little = free < QUEUE_BYTES * host.options.num_ranks
    return LITTLE_SHM.found(f"{text} for {host.options.num_ranks} ranks") if is_little else ok(text)


FEW_CORES = Case(
    Status.WARN,
    "there are fewer cores than ranks",
    "Start fewer ranks, or widen what taskset or the container's cpuset allows.",
)
QUOTA = Case(
    Status.WARN,
    "a control group allows less CPU time than the cores could use",
    "Give the container whole cores (--cpuset-cpus, or the static CPU manager of Kubernetes) "
    "instead of a quota, which stops all threads of a rank at once; or name fewer cores in "
    "VLLM_CPU_OMP_THREADS_BIND.",
)


@check(
    "CPUs",
    "the cores on which this process may run, and the quotas of control groups",
    *(FEW_CORES, QUOTA),
)
def cpus(host: Host) -> Finding:
    num_cores, quota = len(os.sched_getaffinity(0)), cgroup.num_cpus_limit(host)
    text = f"{num_cores} of {os.cpu_count()} logical CPUs"
    if quota is not None and quota < num_cores:
        return QUOTA.found(f"{text}, a quota of {quota:g} CPUs")
    if num_cores < host.options.num_ranks:
        return FEW_CORES.found(f"{text}, for {host.options.num_ranks} ranks")
    return ok(text)


NO_PIDFD = Case(
    Status.WARN,
    "pidfd_open fails",
    "Use Linux 5.3 or later, and a seccomp profile that allows pidfd_open: without it a rank may "
    "outlive the process that started it.",
)


@check(
    "process descriptors",
    "whether a process can watch another one with pidfd_open, by which ranks end with their parent",
    NO_PIDFD,
)
def pidfd(host: Host) -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return NO_PIDFD.found(str(error))
    return ok("pidfd_open works")


@check(
    "sandbox",
    "whether seccomp filters calls of the kernel, and Yama's ptrace_scope; neither stops dwdp, but "
    "they explain why something else fails",
)
def sandbox(host: Host) -> Finding:
    lines = (host.read("/proc/self/status") or "").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    mode = {"0": "off", "1": "strict", "2": "a filter"}.get(fields.get("Seccomp", "").strip(), "?")
    scope = host.read("/proc/sys/kernel/yama/ptrace_scope")
    yama = "no Yama" if scope is None else f"Yama's ptrace_scope {scope}"
    return ok(f"seccomp: {mode}; {yama}; ranks trace no other process")


WRONG_TIME = Case(
    Status.WARN,
    "it is earlier than the installation of vllm-dwdp",
    "Set the clock (chrony, ntpd): downloads over TLS fail, and logs of several hosts don't match.",
)
SLOW_CLOCK = Case(
    Status.WARN,
    "the kernel reads a slow timer",
    "Choose tsc as the kernel's clock source, or ask whoever runs the virtual machine: each look "
    "at the clock costs microseconds.",
)


@check(
    "clock",
    "the time, and from which timer the kernel takes it",
    *(WRONG_TIME, SLOW_CLOCK),
)
def clock(host: Host) -> Finding:
    now, source = time.time(), host.read(CLOCK_SOURCE) or "unknown"
    text = f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(now))}, clock source {source}"
    if now < Path(__file__).stat().st_mtime:
        return WRONG_TIME.found(text)
    return SLOW_CLOCK.found(text) if source in SLOW_CLOCKS else ok(text)


GROUP = Group("This machine", (memory, shm, cpus, pidfd, sandbox, clock))
