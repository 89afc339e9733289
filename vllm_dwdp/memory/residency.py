# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How much expert memory processes really hold, read from their mappings in /proc.

The core names memory files after their owner (`dwdp-rank0`), so that a mapping tells its owner.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = re.compile(
    r"^[0-9a-f]+-[0-9a-f]+ \S+ (?P<offset>[0-9a-f]+) \S+ (?P<inode>\d+)\s*(?P<path>.*)$"
)
_ANONYMOUS_OR_SHARED = re.compile(r"^(?:Pss_Anon|Pss_Shmem):\s+(\d+) kB", re.MULTILINE)
_OWNER = re.compile(r"/memfd:dwdp-rank(?P<rank>\d+)")


@dataclass(frozen=True)
class ExpertMap:
    """One mapping of expert memory.

    owner: the rank, counted in its group. inode, offset: the file that is mapped, and from where on
    in bytes. proportional_bytes: PSS, the resident bytes, each page divided by the number of
    processes that map it.
    """

    owner: int
    inode: int
    offset: int
    mapped_bytes: int
    proportional_bytes: int


def expert_maps(pid: int | str = "self") -> list[ExpertMap]:
    """The expert memory that a process maps."""
    return list(_parse(Path(f"/proc/{pid}/smaps").read_text().splitlines()))


def group_resident_bytes(pids: Iterable[int]) -> int:
    """Resident bytes of expert memory; pages that only these processes share count once."""
    return sum(m.proportional_bytes for pid in pids for m in expert_maps(pid))


def process_proportional_bytes(pid: int | str = "self") -> int:
    """PSS of a process: its resident bytes, each shared page divided among its processes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert match is not None, "smaps_rollup has no Pss line"
    return int(match[1]) * 1024


def anonymous_and_shared_bytes(pid: int | str = "self") -> int:
    """Resident bytes of a process without the pages of files, which the kernel may drop.

    Each page of shared memory is divided by the number of processes that map it. Raises OSError if
    the process has ended or belongs to someone else.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(map(int, _ANONYMOUS_OR_SHARED.findall(rollup)))


def _parse(lines: Iterable[str]) -> Iterator[ExpertMap]:
    place: tuple[int, int, int] | None = None
    sizes: dict[str, int] = {}
    for line in lines:
        if header := _HEADER.match(line):
            found = _OWNER.match(header["path"])
            file = int(header["inode"]), int(header["offset"], 16)
            place = (int(found["rank"]), *file) if found else None
            sizes = {}
        elif place is not None and line.startswith(("Size:", "Pss:")):
            name, value, _ = line.split()
            sizes[name] = int(value) * 1024
            if len(sizes) == 2:
                yield ExpertMap(*place, sizes["Size:"], sizes["Pss:"])
