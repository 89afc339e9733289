# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks hand over fabric handles through the store; unexpected blocks are refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from vllm_dwdp._core import DriverError, HandleType
from vllm_dwdp.group.errors import ExchangeRefused
from vllm_dwdp.group.handover.fabric import FabricExchange
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.group.meet.store import Endpoint

HANDLES = [bytes([layer_idx]) * 64 for layer_idx in range(3)]


def refuse(handle_type, layer_idx):
    raise DriverError("no handle today")


def offer(handle_type, layer_idx):
    assert handle_type is HandleType.FABRIC
    return [(HANDLES[layer_idx], 4096 * (layer_idx + 1))]


@pytest.fixture
def open_exchanges(port):
    """Opens the exchanges of several ranks in this process, each with a source of handles."""
    opened = []

    def open_all(*sources):
        def open_one(rank, source):
            rendezvous = Rendezvous(
                endpoint=Endpoint("127.0.0.1", port),
                job_rank=rank,
                job_size=len(sources),
                dwdp_size=len(sources),
                timeout_s=30,
                one_host=False,
            )
            rendezvous.open()
            options = {"subject": "experts", "num_parcels": len(HANDLES)}
            exchange = FabricExchange(rendezvous, source, **options)
            exchange.open()
            return exchange, rendezvous

        with ThreadPoolExecutor(len(sources)) as pool:
            opened.extend(pool.map(open_one, range(len(sources)), sources))
        return [exchange for exchange, _ in opened]

    yield open_all
    for exchange, rendezvous in reversed(opened):
        exchange.close()
        rendezvous.close()


def test_every_rank_gets_every_layers_handles(open_exchanges):
    for rank, exchange in enumerate(open_exchanges(offer, offer)):
        for layer_idx, handle in enumerate(HANDLES):
            assert exchange.take_handles(1 - rank, layer_idx, [4096 * (layer_idx + 1)]) == [handle]


def test_blocks_of_another_size_are_refused(open_exchanges):
    exchange, _ = open_exchanges(offer, offer)
    with pytest.raises(ExchangeRefused, match=r"dwdp rank 1: expected blocks of \[1\] bytes, got"):
        exchange.take_handles(1, 0, [1])
    with pytest.raises(ExchangeRefused, match="expected blocks of"):
        exchange.take_handles(1, 0, [4096, 4096])


def test_peer_that_cannot_export_says_why(open_exchanges):
    exchanges = open_exchanges(offer, refuse)
    with pytest.raises(ExchangeRefused, match="dwdp rank 1: the peer refused: no handle today"):
        exchanges[0].take_handles(1, 0, [4096])
    assert exchanges[1].take_handles(0, 0, [4096]) == [HANDLES[0]]
