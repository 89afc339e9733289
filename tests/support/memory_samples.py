# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Samples of how much memory processes have, taken from /proc while they load experts."""

import contextlib
import os
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

OWNER = re.compile(r"/memfd:dwdp-rank(\d+)")
SAMPLE_EVERY_S = 0.005


@dataclass(frozen=True)
class Sample:
    """Memory of a process at one moment: its anonymous pages and, by owner, its open memory files.

    The files are read first. Adoption lets files grow and anonymous pages shrink, so the sum is
    never more than the memory in use at one moment.
    """

    at_s: float
    file_bytes: dict[int, int]
    anonymous_bytes: int

    def bytes_of(self, rank):
        return self.anonymous_bytes + self.file_bytes.get(rank, 0)


class Sampler(threading.Thread):
    """A thread that samples the watched processes until it is stopped."""

    def __init__(self):
        super().__init__(daemon=True)
        self._is_over = threading.Event()
        self.samples = {}

    def watch(self, pid):
        self.samples = {**self.samples, pid: []}

    def run(self):
        while not self._is_over.wait(SAMPLE_EVERY_S):
            for pid, samples in self.samples.items():
                with contextlib.suppress(OSError):
                    samples.append(Sample(time.monotonic(), file_bytes(pid), anonymous_bytes(pid)))

    def stop(self):
        self._is_over.set()
        self.join()


def anonymous_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def file_bytes(pid):
    """Allocated bytes of the expert memory files that a process has open, by owner."""
    inodes = {}
    for fd in os.scandir(f"/proc/{pid}/fd"):
        try:
            if found := OWNER.match(os.readlink(fd)):
                status = os.stat(fd)
                inodes[status.st_ino] = int(found[1]), status.st_blocks * 512
        except FileNotFoundError:
            continue
    owned = defaultdict(int)
    for owner, num_bytes in inodes.values():
        owned[owner] += num_bytes
    return dict(owned)
