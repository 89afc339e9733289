# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Works out the cores of each rank and its part of a memory node.

* A rank's cores are a list of logical CPUs, in ascending order.
* This module reads neither the machine nor the environment: callers pass in what they read.
"""

import re
from collections.abc import Collection, Sequence, Set

from vllm_dwdp.config import ConfigError

BIND_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


def parse_core_lists(text: str, allowed: Set[int]) -> list[list[int]]:
    """The core lists in a text such as '0-3|4,6', where bars separate the lists of workers.

    allowed: the CPUs that the process may run on. Raises ConfigError for other CPUs, and for text
    that isn't such a list.
    """
    return [_parse_list(part, text, allowed) for part in text.split("|")]


def divide(cores: Sequence[int], num_ranks: int, num_reserved: int = 0) -> list[list[int]]:
    """Divide cores into a contiguous share for each rank.

    If there are fewer cores than ranks, each rank gets one core, and some ranks share a core.
    num_reserved: how many cores at the end of each share to leave to other processes, if the share
    has more than these.
    """
    if len(cores) < num_ranks:
        return [[cores[rank % len(cores)]] for rank in range(num_ranks)]
    base, more = divmod(len(cores), num_ranks)
    starts = [rank * base + min(rank, more) for rank in range(num_ranks + 1)]
    shares = [list(cores[starts[r] : starts[r + 1]]) for r in range(num_ranks)]
    return [s[: len(s) - num_reserved] if len(s) > num_reserved else s for s in shares]


def spread_lists(
    lists: Sequence[Sequence[int]], job_size: int, command: range
) -> list[list[int] | None]:
    """The cores of each rank of the job; None for one that another command starts and binds.

    command: the ranks that the command with these lists starts. One list is divided between them.
    If there are as many lists as ranks of the command, each of these ranks has one. If there are as
    many as ranks of the job, each rank of the job has one. Raises ConfigError for other numbers.
    """
    if not command:
        return [None] * job_size
    if len(lists) >= job_size:
        return [list(cores) for cores in lists[:job_size]]
    found: list[list[int] | None] = [None] * job_size
    if len(lists) == 1:
        found[command.start : command.stop] = divide(lists[0], len(command))
    elif len(lists) == len(command):
        found[command.start : command.stop] = [list(cores) for cores in lists]
    else:
        raise ConfigError(
            f"expected in {BIND_VARIABLE} cores for {len(command)} ranks, separated by '|', or one "
            f"list that dwdp divides between them, got {len(lists)} lists; name the cores of "
            "every rank, or unset it."
        )
    return found


def memory_share(
    nodes: Sequence[int | None], rank: int, node_bytes: int, limit_bytes: int | None
) -> float:
    """The part of its memory node that one rank may fill, between 0 and 1.

    nodes: the memory node of each rank on this host; None if it isn't known. A rank with an unknown
    node is counted on every node. node_bytes: the size of this rank's node. limit_bytes: the most
    that all ranks together may use on all nodes; None without such a limit.
    """
    share = 1 / sum(node in (nodes[rank], None) for node in nodes)
    if limit_bytes is None:
        return share
    return min(share, limit_bytes / len(nodes) / node_bytes)


def _parse_list(part: str, text: str, allowed: Set[int]) -> list[int]:
    cores: set[int] = set()
    for piece in part.split(","):
        match = _RANGE.fullmatch(piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first:
            raise ConfigError(
                f"expected cores such as '0-3|4-7', 'auto' or 'nobind' in {BIND_VARIABLE}, got "
                f"'{piece}' in '{text}'; name the cores of every rank, or unset it to let dwdp "
                "divide them."
            )
        if last - first >= len(allowed) or not allowed >= set(range(first, last + 1)):
            raise ConfigError(
                f"{BIND_VARIABLE}='{text}' names cores {piece.strip()}, this process may run on "
                f"{ranges_text(allowed)}; name some of these, or widen what taskset or the "
                "container's cpuset allows."
            )
        cores.update(range(first, last + 1))
    return sorted(cores)


def ranges_text(cores: Collection[int]) -> str:
    """Cores as a text of ranges: '0-3,6' for 0, 1, 2, 3 and 6."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
