# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A policy gives each number of tokens a fetch mode, with 'auto' the cheapest by the cost model."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dwdp.config import FetchMode
from vllm_dwdp.device.bandwidth import Bandwidths
from vllm_dwdp.fetch.choice import StepSizes, policy_for
from vllm_dwdp.fetch.cost_model import CostModel, best_mode
from vllm_dwdp.fetch.policy import MIN_GAIN, Policy

DEEPSEEK_R1_ON_NVLINK = CostModel(
    missing_bytes=192 * 44_040_192,
    num_experts=256,
    top_k=8,
    bandwidths=Bandwidths(copies=700e9, peers=700e9, own=3_000e9),
    compute_s_per_token=3e-6,
)

models = st.builds(
    CostModel,
    missing_bytes=st.integers(1, 10**10),
    num_experts=st.integers(8, 512),
    top_k=st.integers(1, 8),
    bandwidths=st.builds(
        Bandwidths, st.floats(1e8, 1e12), st.floats(1e8, 1e12), st.floats(1e8, 4e12)
    ),
    compute_s_per_token=st.floats(1e-9, 1e-3),
)


@given(models, st.integers(0, 300), st.integers(0, 100), st.booleans())
def test_policy_is_the_cheapest_mode_for_every_step(model, max_tokens, captured, hears_router):
    policy = Policy.cheapest(
        model, max_tokens=max_tokens, captured_tokens=captured, hears_router=hears_router
    )
    for num_tokens in range(max_tokens + 1):
        expected = best_mode(
            model.seconds(num_tokens),
            may_select=hears_router,
            may_prefetch=num_tokens > captured,
            min_gain=MIN_GAIN,
        )
        assert policy.mode(num_tokens) is expected
        assert hears_router or expected is not FetchMode.SELECTIVE
        assert not (expected is FetchMode.PREFETCH and num_tokens <= captured)
    assert policy.mode(10 * max_tokens + 1) is policy.modes[-1]


@given(models)
def test_prefetch_hides_its_copies_from_break_even_on(model):
    tokens = model.break_even_tokens
    assert model.seconds(tokens).prefetch == pytest.approx(0, abs=1e-12)
    if tokens > 2:  # one token less may differ only by rounding
        assert model.seconds(tokens - 2).prefetch > 0


def test_slow_reads_in_place_make_copies_pay_in_smaller_steps():
    """Kernels read a weight once for each block of tokens, so large steps read more in place."""
    slow = dataclasses.replace(DEEPSEEK_R1_ON_NVLINK, direct_extra_s_per_token=20e-6)
    for num_tokens in (1, 16):
        assert slow.seconds(num_tokens) == DEEPSEEK_R1_ON_NVLINK.seconds(num_tokens)
    for num_tokens in (1000, 16384):
        assert slow.seconds(num_tokens).direct == pytest.approx(num_tokens * 20e-6)
    usual, found = (
        Policy.cheapest(model, max_tokens=16384) for model in (DEEPSEEK_R1_ON_NVLINK, slow)
    )
    assert usual.mode(1000) is FetchMode.DIRECT
    assert found.mode(1000) is not FetchMode.DIRECT


def test_small_steps_do_not_prefetch_and_large_ones_do():
    policy = Policy.cheapest(DEEPSEEK_R1_ON_NVLINK, max_tokens=16384)
    assert policy.mode(1) is not FetchMode.PREFETCH
    assert policy.mode(16384) is FetchMode.PREFETCH
    assert DEEPSEEK_R1_ON_NVLINK.break_even_tokens == 4027


def test_peers_memory_as_fast_as_own_is_read_where_it_lies():
    model = CostModel(10**8, 64, 4, Bandwidths(10e9, 10e9, 10e9), 1e-6)
    assert Policy.cheapest(model, max_tokens=4096).table() == "from 0 direct"


@pytest.mark.parametrize(
    ("fetch", "captured_tokens", "expected"),
    [
        ("direct", 0, "from 0 direct"),
        ("selective", 512, "from 0 selective"),
        ("prefetch", 0, "from 0 prefetch"),
        ("prefetch", 511, "0-511 direct, from 512 prefetch"),
        ("prefetch", 512, "from 0 direct"),
        ("auto", 0, "from 0 direct"),
    ],
)
def test_policy_copies_only_where_a_step_of_this_engine_does(fetch, captured_tokens, expected):
    """Slots are made only if the policy copies. 'auto' has no model if copies can't save time."""
    policy = policy_for(fetch, None, StepSizes(512, captured_tokens), hears_router=True)
    assert policy.table() == expected


@pytest.mark.parametrize(("max_tokens", "is_direct"), [(1024, True), (16384, False)])
def test_auto_copies_where_the_largest_step_gains(max_tokens, is_direct):
    sizes = StepSizes(max_tokens, 512)
    policy = policy_for("auto", DEEPSEEK_R1_ON_NVLINK, sizes, hears_router=True)
    assert policy.is_direct is is_direct


def test_auto_does_not_choose_by_a_router_that_it_cannot_hear():
    """One token of 512 experts reads 1 % of them, so on a slow link it pays to copy just those."""
    slow = dataclasses.replace(DEEPSEEK_R1_ON_NVLINK, direct_extra_s_per_token=1.0)
    modes = [
        policy_for("auto", slow, StepSizes(16384, 0), hears_router=hears).modes
        for hears in (True, False)
    ]
    assert FetchMode.SELECTIVE in modes[0]
    assert set(modes[1]) == {FetchMode.DIRECT, FetchMode.PREFETCH}


def test_modes_of_small_steps_are_those_of_their_sizes():
    modes = (FetchMode.DIRECT, FetchMode.SELECTIVE, FetchMode.PREFETCH)
    policy = Policy((0, 10, 600), modes)
    assert [len(policy.modes_up_to(n)) for n in (0, 9, 10, 599, 600)] == [1, 1, 2, 2, 3]


def test_captured_steps_never_prefetch():
    policy = Policy.always(FetchMode.PREFETCH, captured_tokens=512)
    assert policy.mode(512) is FetchMode.DIRECT
    assert policy.mode(513) is FetchMode.PREFETCH
    assert policy.table() == "0-512 direct, from 513 prefetch"


@pytest.mark.parametrize(
    ("mode", "captured", "writes"),
    [
        (FetchMode.SELECTIVE, 0, False),
        (FetchMode.SELECTIVE, 8, True),
        (FetchMode.PREFETCH, 8, False),
        (FetchMode.DIRECT, 8, False),
    ],
)
def test_only_graphs_of_steps_that_copy_write_slots(mode, captured, writes):
    assert Policy.always(mode, captured_tokens=captured).graphs_write_slots is writes


def test_graphs_of_some_sizes_may_write_slots():
    modes = (FetchMode.SELECTIVE, FetchMode.DIRECT, FetchMode.PREFETCH)
    assert Policy((0, 10, 600), modes, captured_tokens=512).graphs_write_slots
    modes = (FetchMode.DIRECT, FetchMode.SELECTIVE, FetchMode.PREFETCH)
    assert Policy((0, 10, 600), modes, captured_tokens=10).graphs_write_slots
    assert not Policy((0, 10, 600), modes, captured_tokens=9).graphs_write_slots
