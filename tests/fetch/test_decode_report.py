# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""At start a rank logs how much decode steps read over the link, and warns if that takes long."""

import logging

import pytest
from support.log_lines import log_lines

from vllm_dwdp.device.bandwidth import Bandwidths
from vllm_dwdp.fetch.decode_report import MAX_LINK_S, DecodeModel, report_decode

GB = 10**9
NVLINK = Bandwidths(copies=370 * GB, peers=370 * GB, own=3350 * GB)
LARGE = DecodeModel(missing_bytes=58 * 9_870_000_000, num_experts=256, top_k=8, bandwidths=NVLINK)
"""A model with 58 MoE layers; a rank lacks 9.87 GB of each."""


def model(missing_bytes, *, peers, own):
    """A model in which one token chooses all experts."""
    return DecodeModel(missing_bytes, 8, 8, Bandwidths(copies=peers, peers=peers, own=own))


def lines(model, sizes, level=logging.INFO, **options):
    with log_lines(level) as found:
        report_decode(model, sizes, **{"has_kv_transfer": False, **options})
    return found


def test_few_tokens_choose_most_experts_of_a_large_model():
    step = LARGE.step(64)
    assert step.num_bytes == pytest.approx(58 * 8.57e9, rel=0.01)
    assert step.link_s == pytest.approx(1.34, rel=0.01)
    assert step.own_s == pytest.approx(0.148, rel=0.01)


def test_figures_are_said_for_powers_of_two_and_the_largest_size():
    said, *_ = lines(LARGE, [1, 2, 4, 24, 40, 48])
    for shown in ("1 token", "2 tokens", "4 tokens", "48 tokens"):
        assert f" {shown} " in said
    assert "24 tokens" not in said and "40 tokens" not in said
    assert "at 370.0 GB/s (own memory: 3350.0 GB/s)" in said
    assert "1 token 17060.6 MiB in 48.35 ms (5.34 ms)" in said


def test_slow_decode_is_warned_of_with_figures_and_ways_out():
    (warning,) = lines(LARGE, [1, 64], logging.WARNING)
    assert warning.startswith("A decode step of 64 tokens reads 463.")
    assert "takes 1344 ms where own memory would take 148 ms" in warning
    for option in ("--kv-transfer-config", "--max-num-seqs", "expert parallelism"):
        assert option in warning


def test_server_with_a_kv_transfer_is_not_warned():
    assert lines(LARGE, [64], logging.WARNING, has_kv_transfer=True) == []
    assert len(lines(LARGE, [64], has_kv_transfer=True)) == 1, "the figures are said"


@pytest.mark.parametrize(
    ("link_s", "slowdown", "is_warned"),
    [
        (MAX_LINK_S * 1.01, 2.01, True),
        (MAX_LINK_S * 0.99, 2.01, False),
        (MAX_LINK_S * 1.01, 1.99, False),
    ],
)
def test_warning_needs_both_a_long_step_and_a_slow_link(link_s, slowdown, is_warned):
    one = model(GB, peers=GB / link_s, own=slowdown * GB / link_s)
    assert bool(lines(one, [1], logging.WARNING)) is is_warned


def test_only_the_largest_size_is_judged():
    small = LARGE.step(1).link_s > MAX_LINK_S
    assert small, "so that the smallest alone would be warned of"
    (warning,) = lines(LARGE, [1, 2], logging.WARNING)
    assert warning.startswith("A decode step of 2 tokens")
