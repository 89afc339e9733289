# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares the gather kernel with its reference, ChosenExperts, on random experts, copies and ids.

Ends with an error at the first difference in bytes, totals or hits. The argument is the device;
without it Triton's interpreter runs the kernel on the CPU.
"""

import random
import sys

import torch

from vllm_dwdp._core import ChosenExperts, HostCopier
from vllm_dwdp.device.gather import CHUNK_BYTES, GatheredExperts, make_totals

NUM_PEERS = 3
NUM_CASES = 60
DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cpu"


class Case:
    """The copies of experts of random sizes, once for the reference and once for the kernel."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        align = self.random.choice([1, 2, 4, 16])
        biggest = self.random.choice([40, 5000, 3 * CHUNK_BYTES // 2])
        self.num_experts = self.random.randint(1, 9)
        self.sizes = [
            [align * self.random.randint(1, max(1, biggest // align)) for _ in range(pieces)]
            for pieces in (self.random.randint(0, 3) for _ in range(self.num_experts))
        ]
        num_bytes = sum(map(sum, self.sizes)) + 1
        source = torch.randint(1, 256, (num_bytes,), dtype=torch.uint8)
        self.sources = [source, source.to(DEVICE)]
        self.destinations = [torch.zeros_like(source) for source in self.sources]

    def experts(self, which):
        """By expert, copies from several peers: (peer, destination, source, bytes).

        which: 0 for the reference's memory, 1 for the kernel's.
        """
        at, found = 0, []
        for sizes in self.sizes:
            copies = []
            for num_bytes in sizes:
                to = self.destinations[which].data_ptr() + at
                from_ = self.sources[which].data_ptr() + at
                copies.append((at % NUM_PEERS, to, from_, num_bytes))
                at += num_bytes
            found.append(copies)
        return found

    def ids(self):
        dtype = self.random.choice([torch.int32, torch.int64])
        count = self.random.choice([0, 1, 5, 1500])
        chosen = self.random.sample(range(-1, self.num_experts), k=self.random.randint(1, 2))
        return torch.tensor(self.random.choices(chosen, k=count), dtype=dtype)

    def are_equal(self):
        reference, gathered = self.destinations
        return torch.equal(reference, gathered.cpu())


def arguments_of(ids):
    return ids.data_ptr(), ids.numel(), ids.element_size()


def check(seed):
    case = Case(seed)
    totals = make_totals(NUM_PEERS, DEVICE)
    reference = ChosenExperts(HostCopier(), case.experts(0), NUM_PEERS)
    gathered = GatheredExperts(case.experts(1), totals)
    expected_bytes, copies, hits = [0] * NUM_PEERS, 0, 0
    assert not totals.any(), "what it ran to be compiled copied something"
    for _ in range(4):
        ids = case.ids()
        by_peer, num_copies, num_hits = reference.fetch(*arguments_of(ids))
        on_device = ids.to(DEVICE)
        gathered.fetch(*arguments_of(on_device))
        expected_bytes = [a + b for a, b in zip(expected_bytes, by_peer, strict=True)]
        copies += num_copies
        hits += num_hits
        assert case.are_equal(), seed
        found_copies, found_hits, *found_bytes = totals.tolist()
        assert found_bytes == expected_bytes, seed
        assert found_copies >= copies, "large copies are cut into several"
        if max(map(max, filter(None, case.sizes)), default=0) <= CHUNK_BYTES:
            assert found_copies == copies, seed
        assert found_hits == hits, seed
        if case.random.random() < 0.3:
            reference.forget()
            gathered.forget()
            for destination in case.destinations:
                destination.zero_()


def check_replays(seed):
    """Run the kernel as a captured graph does: forget, then launch again with new ids in place."""
    case = Case(seed)
    gathered = GatheredExperts(case.experts(1), make_totals(NUM_PEERS, DEVICE))
    ids = torch.zeros(4, dtype=torch.int32)
    on_device = ids.to(DEVICE)
    turn = gathered._turn
    for _ in range(4):
        ids.copy_(torch.randint(0, case.num_experts, (4,)))
        on_device.copy_(ids)
        reference = ChosenExperts(HostCopier(), case.experts(0), NUM_PEERS)
        for destination in case.destinations:
            destination.fill_(0xFF)
        reference.fetch(*arguments_of(ids))
        gathered._turn = turn  # the rows of a launch are fixed when it is captured
        gathered.forget()
        gathered.fetch(*arguments_of(on_device))
        assert case.are_equal(), seed


for seed in range(NUM_CASES):
    torch.manual_seed(seed)
    check(seed)
    if seed % 3 == 0:
        check_replays(seed)
print(f"{NUM_CASES} cases equal")
