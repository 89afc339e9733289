# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The gather kernel against ChosenExperts, its reference: random experts, copies and ids.

Ends with an error at the first byte, total or hit that differs.
"""

import random

import torch

from vllm_dwdp._core import ChosenExperts, HostCopier
from vllm_dwdp.fetch.gather import CHUNK_BYTES, GatheredExperts, make_totals

NUM_PEERS = 3
NUM_CASES = 60


class Case:
    """Experts of random sizes in one source and two destinations, as copies would have them."""

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
        self.source = torch.randint(1, 256, (num_bytes,), dtype=torch.uint8)
        self.destinations = [torch.zeros_like(self.source) for _ in range(2)]

    def experts(self, which):
        """By expert: copies of several peers."""
        at, found = 0, []
        for sizes in self.sizes:
            copies = []
            for num_bytes in sizes:
                to = self.destinations[which].data_ptr() + at
                copies.append((at % NUM_PEERS, to, self.source.data_ptr() + at, num_bytes))
                at += num_bytes
            found.append(copies)
        return found

    def ids(self):
        dtype = self.random.choice([torch.int32, torch.int64])
        count = self.random.choice([0, 1, 5, 1500])
        chosen = self.random.sample(range(-1, self.num_experts), k=self.random.randint(1, 2))
        return torch.tensor(self.random.choices(chosen, k=count), dtype=dtype)


def check(seed):
    case = Case(seed)
    totals = make_totals(NUM_PEERS, "cpu")
    reference = ChosenExperts(HostCopier(), case.experts(0), NUM_PEERS)
    gathered = GatheredExperts(case.experts(1), totals)
    expected_bytes, copies, hits = [0] * NUM_PEERS, 0, 0
    assert not totals.any(), "what it ran to be compiled copied something"
    for _ in range(4):
        ids = case.ids()
        of_ids = ids.data_ptr(), ids.numel(), ids.element_size()
        by_peer, num_copies, num_hits = reference.fetch(*of_ids)
        gathered.fetch(*of_ids)
        expected_bytes = [a + b for a, b in zip(expected_bytes, by_peer, strict=True)]
        copies += num_copies
        hits += num_hits
        assert torch.equal(*case.destinations), seed
        assert totals[2:].tolist() == expected_bytes, seed
        assert totals[0] >= copies, "large copies are cut into several"
        if max(map(max, filter(None, case.sizes)), default=0) <= CHUNK_BYTES:
            assert totals[0] == copies, seed
        assert totals[1] == hits, seed
        if case.random.random() < 0.3:
            reference.forget()
            gathered.forget()
            for destination in case.destinations:
                destination.zero_()


def check_replays(seed):
    """As a captured graph runs it: forgets, then the same launch on what the ids are by then."""
    case = Case(seed)
    totals = make_totals(NUM_PEERS, "cpu")
    gathered = GatheredExperts(case.experts(1), totals)
    ids = torch.zeros(4, dtype=torch.int32)
    turn = gathered._turn
    for _ in range(4):
        ids.copy_(torch.randint(0, case.num_experts, (4,)))
        reference = ChosenExperts(HostCopier(), case.experts(0), NUM_PEERS)
        for destination in case.destinations:
            destination.fill_(0xFF)
        reference.fetch(ids.data_ptr(), ids.numel(), ids.element_size())
        gathered._turn = turn  # the arrays of a launch are fixed when it is captured
        gathered.forget()
        gathered.fetch(ids.data_ptr(), ids.numel(), ids.element_size())
        assert torch.equal(*case.destinations), seed


for seed in range(NUM_CASES):
    torch.manual_seed(seed)
    check(seed)
    if seed % 3 == 0:
        check_replays(seed)
print(f"{NUM_CASES} cases equal")
