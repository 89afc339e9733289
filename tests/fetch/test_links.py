# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Each rank measures its links one after another; in a turn no two ranks read the same peer."""

import time
from collections import defaultdict

import pytest
import torch

from vllm_dwdp.device.bandwidth import Bandwidths, LinkProbe
from vllm_dwdp.fetch import links
from vllm_dwdp.fetch.links import (
    Links,
    PeerLink,
    Places,
    measure_links,
    places_of,
)
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout

PAGE = 4096


class NotingProbe(LinkProbe):
    """Records (end of the turn, peer) of each read; a peer's memory holds the peer's number."""

    room_bytes = PAGE

    def __init__(self, notes):
        self._notes = notes

    def copies(self, sources, until):
        return self._move(sources, until)

    def reads(self, sources, until):
        return 2 * self._move(sources, until)

    def _move(self, sources, until):
        peer = int(sources[0][0])
        self._notes.append((until, peer))
        return 100.0 + peer


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(links, "TURN_S", 0.01)


def places(rank, owners):
    """The places that `rank` reads: its own memory, and that of the other `owners`."""
    marks = {owner: [torch.tensor([owner], dtype=torch.uint8)] for owner in owners}
    return Places(marks.pop(rank, []), marks)


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_no_two_ranks_read_one_peer_in_a_turn(num_ranks):
    read_in_turn = defaultdict(list)
    for rank in range(num_ranks):
        notes = []
        found = measure_links(
            NotingProbe(notes), places(rank, range(num_ranks)), rank=rank, num_ranks=num_ranks
        )
        assert found.own == 2 * (100 + rank)
        expected = {p: PeerLink(100 + p, 2 * (100 + p)) for p in range(num_ranks) if p != rank}
        assert found.peers == expected
        (first, _), *_ = notes
        for until, peer in notes:
            read_in_turn[round((until - first) / links.TURN_S)].append(peer)
    assert len(read_in_turn) == 2 * (num_ranks - 1) + 1, "each peer is copied and read, then own"
    for peers in read_in_turn.values():
        assert sorted(peers) == list(range(num_ranks))


def test_peer_of_whom_nothing_is_read_keeps_its_turn():
    """With redundant experts a rank may read nothing of a peer, but the others use that turn."""
    notes = []
    start = time.monotonic()
    found = measure_links(NotingProbe(notes), places(0, [0, 2]), rank=0, num_ranks=3)
    assert list(found.peers) == [2]
    (until, _), *_ = notes
    assert until - start >= 3 * links.TURN_S
    assert time.monotonic() - start >= 4 * links.TURN_S


def test_rank_without_blocks_of_its_own_takes_a_peers_figure_for_own_memory():
    found = measure_links(NotingProbe([]), places(0, [1]), rank=0, num_ranks=2)
    assert found.own == found.peers[1].reads


def test_slower_peers_take_more_of_the_time():
    found = Links(rank=0, own=9.0, peers={1: PeerLink(2.0, 4.0), 2: PeerLink(1.0, 4.0)})
    assert found.bandwidths([100, 30, 30]) == Bandwidths(60 / 45, 4.0, 9.0)


def test_figures_are_told_by_rank():
    found = Links(rank=1, own=9e9, peers={0: PeerLink(2e9, 4e9)})
    assert found.gb_per_s(2) == {"own": 9.0, "copies": [2.0, None], "reads": [4.0, None]}
    assert "rank 0 2.0 and 4.0; own memory is read at 9.0" in found.describe()


def test_parts_of_every_peer_are_measured_not_the_first_ones_alone():
    """Parts of the second layer are added where the first one has too few bytes of a peer."""
    placement = Placement.make(num_experts=4, dwdp_size=4)
    layer = (TensorLayout(ExpertTensor("w13_weight", 2 * PAGE), placement, PAGE),)
    layout = RankLayout((layer,) * 2, rank=1)
    views = [[torch.zeros(8 * PAGE, dtype=torch.uint8)] for _ in range(2)]
    found = places_of(layout, views, num_bytes=3 * PAGE, bytes_of=lambda view: view)
    assert sorted(found.over_links) == [0, 2, 3]
    for parts in (found.own, *found.over_links.values()):
        assert [part.nbytes for part in parts] == [2 * PAGE, PAGE]
    missing = layout.bytes_by_peer()
    assert missing == [4 * PAGE, 0, 4 * PAGE, 4 * PAGE], "its own is where it reads fastest"


def test_own_experts_in_host_memory_are_a_link_of_their_own():
    placement = Placement.make(num_experts=8, dwdp_size=2, host_experts=1)
    layer = (TensorLayout(ExpertTensor("w13_weight", 2 * PAGE), placement, PAGE),)
    layout = RankLayout((layer,), rank=1)
    views = [[torch.zeros(16 * PAGE, dtype=torch.uint8)]]
    found = places_of(layout, views, num_bytes=99 * PAGE, bytes_of=lambda view: view)
    sizes = {owner: sum(p.nbytes for p in parts) for owner, parts in found.over_links.items()}
    assert sizes == {0: 8 * PAGE, 1: 2 * PAGE}, "of rank 0, and of its own host"
    assert sum(part.nbytes for part in found.own) == 6 * PAGE
    missing = layout.bytes_by_peer()
    assert missing == [8 * PAGE, 2 * PAGE]
    measured = Links(rank=1, own=9e9, peers={0: PeerLink(4e9, 8e9), 1: PeerLink(1e9, 2e9)})
    both = measured.bandwidths(missing)
    assert both.copies == pytest.approx(10 / (8 / 4e9 + 2 / 1e9))
    assert "the host 1.0 and 2.0" in measured.describe()
