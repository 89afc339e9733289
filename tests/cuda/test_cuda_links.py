# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank measures the link to each peer's GPU with its copier, over the fake driver."""

import time

from support.fake_cuda import bytes_of
from support.gpu_ranks import layouts_of, make_layers, make_ranks

from vllm_dwdp._core import CudaCopier
from vllm_dwdp.config import FetchMode
from vllm_dwdp.device.bandwidth import GpuProbe
from vllm_dwdp.fetch import links
from vllm_dwdp.fetch.links import measure_links, places_of
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout

NUM_LAYERS, NUM_EXPERTS, NUM_RANKS = 3, 7, 3


def test_every_peer_of_a_gpu_has_a_figure_and_nothing_is_left(fake, monkeypatch):
    monkeypatch.setattr(links, "TURN_S", 0.02)
    rank = make_ranks(fake, num_layers=NUM_LAYERS, num_experts=NUM_EXPERTS, dwdp_size=NUM_RANKS)[0]
    driver = fake.driver()
    placement = Placement.make(num_experts=NUM_EXPERTS, dwdp_size=NUM_RANKS)
    layers = make_layers(NUM_LAYERS, NUM_EXPERTS, driver.granularity)
    layout = RankLayout(layouts_of(layers, placement, driver.granularity), rank=0)
    probe = GpuProbe(driver, CudaCopier(driver), time.perf_counter, cache_bytes=0)
    places = places_of(
        layout,
        rank._views[FetchMode.DIRECT],
        num_bytes=2 * driver.granularity,
        bytes_of=bytes_of,
    )
    for parts in (places.own, places.over_links[1], places.over_links[2]):
        assert sum(part.nbytes for part in parts) == 2 * driver.granularity
    before = fake.calls("cuMemcpyDtoDAsync")
    found = measure_links(probe, places, rank=0, num_ranks=NUM_RANKS)
    assert sorted(found.peers) == [1, 2]
    assert min(found.own, *found.peers[1], *found.peers[2]) > 0
    assert fake.calls("cuMemcpyDtoDAsync") > before
