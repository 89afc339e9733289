# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Medians, spreads and ratios of `vllm-dwdp bench serve`, of figures that are given here."""

from collections import Counter

import pytest

from vllm_dwdp.bench.client import Served, summed_up
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.memory_use import MemoryUse
from vllm_dwdp.bench.rounds import Measurement, Measurements
from vllm_dwdp.bench.summary import Spread, summaries, to_json

RATES = {"dwdp": [100.0, 130.0, 110.0], "tp": [50.0, 100.0, 55.0]}


def measured(rates, *, itl_s=0.01, variant="undisturbed"):
    found = Measurements()
    for arm, of_arm in rates.items():
        for number, rate in enumerate(of_arm):
            served = Served(rate, ttft_s=rate / 1e3, itl_s=itl_s)
            found.rounds.append(Measurement(arm, variant, number, served, core_share=0.1 * number))
        found.memory[arm] = MemoryUse(host=7, shared_experts=3, gpus=None)
        found.cpu_seconds[arm, variant] = Counter({"VLLM::Worker": 1.23456})
    return found


def test_medians_and_ranges():
    dwdp, tp = summaries(measured(RATES), "undisturbed")
    assert (dwdp.arm, tp.arm) == ("dwdp", "tp")
    assert dwdp.tokens_per_s == Spread(110.0, 100.0, 130.0)
    assert tp.ttft_s == Spread(0.055, 0.05, 0.1)
    assert dwdp.core_share == pytest.approx(0.1)
    assert dwdp.cpu_seconds == {"VLLM::Worker": 1.23}


def test_ratios_are_of_medians_and_their_ranges_of_rounds():
    dwdp, tp = summaries(measured(RATES), "undisturbed")
    assert tp.dwdp_over == Spread(2.0, 1.3, 2.0)
    assert dwdp.dwdp_over == Spread(1.0, 1.0, 1.0)


def test_a_round_without_dwdp_counts_in_no_ratio():
    found = measured({"dwdp": [100.0], "tp": [50.0, 20.0]})
    assert summaries(found, "undisturbed")[1].dwdp_over == Spread(2.0, 2.0, 2.0)


def test_arms_without_dwdp_have_no_ratio():
    (tp,) = summaries(measured({"tp": [50.0]}), "undisturbed")
    assert tp.dwdp_over is None


def test_answers_of_one_token_have_no_time_between_tokens():
    (tp,) = summaries(measured({"tp": [50.0]}, itl_s=None), "undisturbed")
    assert tp.itl_s is None


def test_json_has_every_variant_and_memory():
    found = to_json(measured(RATES), ["undisturbed", "disturbed"])
    assert found["variants"]["disturbed"] == {}
    assert found["variants"]["undisturbed"]["tp"]["tokens_per_s"]["median"] == 55.0
    assert found["memory_bytes"]["tp"] == {"host": 7, "shared_experts": 3, "gpus": None}


def client(start_s, duration_s, ttfts, itls, errors=()):
    """What one client of vLLM found; each request has 90 tokens of prompt and 10 of answer."""
    return {
        "completed": len(ttfts),
        "start_times": [start_s + 1.0, start_s],
        "duration": duration_s,
        "total_input_tokens": 90 * len(ttfts),
        "total_output_tokens": 10 * len(ttfts),
        "ttfts": ttfts,
        "itls": itls,
        "errors": list(errors),
    }


def test_a_round_lasts_from_the_first_request_to_the_last_answer_of_any_client():
    found = summed_up(
        [
            client(100.0, 10.0, [0.1, 0.3], [[0.01], [0.02]]),
            client(105.0, 15.0, [0.2], [[0.06, 0.03]]),
        ],
        expected=3,
    )
    assert found == Served(tokens_per_s=300 / 20.0, ttft_s=0.2, itl_s=0.025)


def test_a_missing_answer_is_an_error():
    lost = client(0.0, 1.0, [0.1], [[]], errors=["", "Traceback\nOSError: reset"])
    with pytest.raises(BenchError, match="expected answers to 2 requests, got 1: OSError: reset"):
        summed_up([lost], expected=2)


def test_answers_of_one_token_leave_no_gap():
    assert summed_up([client(0.0, 1.0, [0.1], [[]])], expected=1).itl_s is None
