# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Starts ranks as real processes, which meet at a free port."""

import pytest
from rank import RankProcess

from vllm_dwdp.bench.ports import free_port


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def start(port):
    ranks = []

    def start_rank(rank, size=2, dwdp_size=None, **options):
        job = {"rank": rank, "size": size, "dwdp_size": dwdp_size or size, "port": port, **options}
        ranks.append(RankProcess(job))
        return ranks[-1]

    yield start_rank
    for rank in ranks:
        rank.kill()
