# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What arrivals do to gains in throughput and in TTFT: the table in docs/planning.md."""

import pytest
from planning.cases import GB200, R1, ROOT

from vllm_dwdp.planning.prompts import Prompts
from vllm_dwdp.planning.request import Request
from vllm_dwdp.simulation.planned_run import simulate_plan


@pytest.mark.parametrize(
    ("per_s", "throughput", "ttft"),
    [(100, 0.98, 0.55), (140, 1.11, 2.67), (300, 1.16, 1.23), (None, 1.18, 1.17)],
)
def test_gains_in_ttft_depend_on_arrivals(per_s, throughput, ttft):
    request = Request(model=R1, hardware=GB200, dwdp_size=4, isl=1024, length_ratio=0.8)
    found = simulate_plan(request, Prompts(number=2800, per_s=per_s))
    gain = found.expert_parallel.ttft_s.p50 / found.dwdp.ttft_s.p50
    assert found.dwdp_over_expert_parallel == pytest.approx(throughput, rel=0.02)
    assert gain == pytest.approx(ttft, rel=0.1)
    row = f"| {per_s or 'all at once'} | {throughput} | {ttft} |"
    assert row in (ROOT / "docs/planning.md").read_text()
