# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Links are measured peer by peer, in turns in which no two ranks read one peer."""

import threading
import time
from collections import defaultdict

import pytest
import torch

from vllm_dwdp.fetch import links
from vllm_dwdp.fetch.bandwidth import Bandwidths, LinkProbe
from vllm_dwdp.fetch.links import Links, PeerLink, bytes_by_peer, measure_links, places_of
from vllm_dwdp.layout import ExpertTensor, TensorLayout
from vllm_dwdp.placement import Placement

PAGE = 4096


class NotingProbe(LinkProbe):
    """Of a rank whose peer's memory is a tensor that names it; notes who is read from when on."""

    room_bytes = PAGE

    def __init__(self, rank, notes):
        self._rank = rank
        self._notes = notes

    def copies(self, sources, until):
        return self._move(sources, until)

    def reads(self, sources, until):
        return 2 * self._move(sources, until)

    def _move(self, sources, until):
        peer = int(sources[0][0])
        self._notes.append((time.monotonic(), until, self._rank, peer))
        time.sleep(max(0.0, until - time.monotonic()))
        return 100.0 + peer


def places(owners):
    return {owner: [torch.tensor([owner], dtype=torch.uint8)] for owner in owners}


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_no_two_ranks_read_one_peer_at_a_time(num_ranks):
    notes, found = [], {}

    def measure(rank):
        probe = NotingProbe(rank, notes)
        found[rank] = measure_links(probe, places(range(num_ranks)), rank=rank, num_ranks=num_ranks)

    threads = [threading.Thread(target=measure, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank, own_links in found.items():
        assert own_links.own == 2 * (100 + rank)
        expected = {p: PeerLink(100 + p, 2 * (100 + p)) for p in range(num_ranks) if p != rank}
        assert own_links.peers == expected
    by_turn = defaultdict(set)
    first = min(start for start, *_ in notes)
    for start, _, _, peer in notes:
        turn = round((start - first) / links.TURN_S)
        assert peer not in by_turn[turn], "two ranks read one peer in a turn"
        by_turn[turn].add(peer)


def test_peer_of_whom_nothing_is_read_keeps_its_turn():
    """With redundant experts; the others' turns go on meanwhile."""
    notes = []
    start = time.monotonic()
    found = measure_links(NotingProbe(0, notes), places([0, 2]), rank=0, num_ranks=3)
    assert list(found.peers) == [2]
    begin, *_ = notes[0]
    assert begin - start >= 2 * links.TURN_S


def test_rank_without_blocks_of_its_own_takes_a_peers_figure_for_own_memory():
    found = measure_links(NotingProbe(0, []), places([1]), rank=0, num_ranks=2)
    assert found.own == found.peers[1].reads


def test_slower_peers_take_more_of_the_time():
    found = Links(own=9.0, peers={1: PeerLink(2.0, 4.0), 2: PeerLink(1.0, 4.0)})
    assert found.bandwidths([100, 30, 30]) == Bandwidths(60 / 45, 4.0, 9.0)


def test_figures_are_told_by_rank():
    found = Links(own=9e9, peers={0: PeerLink(2e9, 4e9)})
    assert found.gb_per_s(2) == {"own": 9.0, "copies": [2.0, None], "reads": [4.0, None]}
    assert "rank 0 2.0 and 4.0; own memory is read at 9.0" in found.describe()


class ShownView:
    def __init__(self, num_bytes):
        self._tensor = torch.arange(num_bytes, dtype=torch.int64).to(torch.uint8)

    def bytes_tensor(self):
        return self._tensor


def test_parts_of_every_peer_are_measured_not_the_first_ones_alone():
    """Two layers; where one has too little of a peer, the next one adds to it."""
    placement = Placement.make(num_experts=4, dwdp_size=4)
    layer = (TensorLayout(ExpertTensor("w13_weight", 2 * PAGE), placement, PAGE),)
    views = [[ShownView(8 * PAGE)] for _ in range(2)]
    found = places_of([layer] * 2, views, rank=1, num_bytes=3 * PAGE)
    assert sorted(found) == [0, 1, 2, 3]
    assert [[part.nbytes for part in parts] for parts in found.values()] == [[2 * PAGE, PAGE]] * 4
    assert bytes_by_peer([layer] * 2, rank=1, num_ranks=4) == [4 * PAGE] * 4
