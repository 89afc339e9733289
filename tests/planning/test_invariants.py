# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What must hold for any model and any load, whatever the constants are."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from planning.cases import GB200, R1, R1_RATES, R1_SPREAD

from vllm_dwdp.planning import implementation, profiles
from vllm_dwdp.planning.break_even import break_even_tokens, window
from vllm_dwdp.planning.contention import contention, mean_rivals
from vllm_dwdp.planning.dwdp_step import dwdp_layer, dwdp_step
from vllm_dwdp.planning.hardware import read_hardware
from vllm_dwdp.planning.job import Job
from vllm_dwdp.planning.model_config import read_model
from vllm_dwdp.planning.other_steps import replica_step, tensor_parallel_step
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.roofline import layer_seconds
from vllm_dwdp.planning.skew import excess_load, largest_of
from vllm_dwdp.planning.spread import spread_experts
from vllm_dwdp.planning.throughput import throughput
from vllm_dwdp.planning.workload import Workload

MODELS = {name: read_model(name) for name in profiles.names(profiles.MODELS)}
HARDWARE = {name: read_hardware(name) for name in profiles.names(profiles.HARDWARE)}
models = st.sampled_from(list(MODELS.values()))
machines = st.sampled_from(list(HARDWARE.values()))
tokens = st.integers(1, 131072)
lengths = st.integers(16, 65536)
ratios = st.floats(0.01, 1)


@given(models, machines, tokens, tokens, lengths, ratios)
def test_more_tokens_never_take_less_time(model, machine, few, many, isl, ratio):
    few, many = sorted((few, many))
    rates = Rates.achieved(machine, 2)
    less, more = (layer_seconds(model, rates, Workload(n, isl, ratio)) for n in (few, many))
    assert less.total <= more.total * (1 + 1e-9)


@given(models, machines, tokens, lengths, ratios)
def test_no_part_is_faster_than_at_peak_rates(model, machine, count, isl, ratio):
    work = Workload(count, isl, ratio)
    real = layer_seconds(model, Rates.achieved(machine, 2), work)
    peak = layer_seconds(model, dataclasses.replace(Rates.peak(machine, 2), is_peak=False), work)
    for part in ("attention", "projections", "elementwise", "mlp", "experts"):
        assert getattr(real, part) >= getattr(peak, part) * (1 - 1e-9)


@given(models, machines, tokens, lengths)
def test_dwdp_never_beats_ranks_that_hold_all_experts(model, machine, count, isl):
    rates, work = Rates.achieved(machine, 2), Workload(count, isl)
    spread = spread_experts(model, 2)
    step = dwdp_step(model, rates, work, spread, implementation.VLLM_DWDP)
    assert step >= replica_step(model, rates, work) * (1 - 1e-9)


@given(tokens, lengths, st.integers(2, 72))
def test_slices_never_cost_time(count, isl, ranks):
    work, spread = Workload(count, isl), spread_experts(R1, ranks)
    with_slices, without = (
        dwdp_layer(R1, R1_RATES, work, spread, how)
        for how in (implementation.PUBLISHED_SLICED, implementation.PUBLISHED)
    )
    assert with_slices.total <= without.total * (1 + 1e-9)
    assert with_slices.copy <= without.copy * (1 + 1e-9)


@given(tokens, lengths)
def test_contention_is_at_most_that_of_ranks_which_always_copy(count, isl):
    found = dwdp_layer(R1, R1_RATES, Workload(count, isl), R1_SPREAD, implementation.PUBLISHED)
    alone = R1_SPREAD.fetch_bytes / R1_RATES.copy_rate
    assert alone <= found.copy <= alone * (1 + mean_rivals(4)) * (1 + 1e-9)
    assert found.total >= max(found.copy, found.compute) * (1 - 1e-9)


@given(models, lengths, ratios)
def test_break_even_is_the_smallest_step_that_hides_its_copies(model, isl, ratio):
    rates, spread = Rates.achieved(GB200, 4), spread_experts(model, 4)
    found = break_even_tokens(model, rates, spread, isl=isl, length_ratio=ratio)
    assert found is not None
    assert window(model, rates, Workload(found, isl, ratio), spread).over_fetch >= 1
    assume(found > 1)
    assert window(model, rates, Workload(found - 1, isl, ratio), spread).over_fetch < 1


@given(st.integers(2, 3000))
def test_rivals_of_all_numbers_add_up(ranks):
    found = contention(ranks)
    assert sum(found.percentages) == pytest.approx(100)
    assert found.mean_rivals == pytest.approx(mean_rivals(ranks))


@given(st.integers(2, 16), st.integers(16, 256))
def test_owning_more_experts_saves_bytes(ranks, owned):
    assume(owned * ranks >= 256)
    even, more = spread_experts(R1, ranks), spread_experts(R1, ranks, owned)
    assert more.fetch_bytes <= even.fetch_bytes
    assert more.owned == owned
    assert more.missing == 256 - owned


@given(lengths, ratios, st.integers(1, 131072))
def test_whole_prompts_never_exceed_the_limit(isl, ratio, limit):
    work = Workload.full(limit, isl, length_ratio=ratio, is_chunked=False)
    assert 0 < work.tokens <= limit


def test_prompts_of_one_length_differ_in_nothing():
    work = Workload.full(32768, 8192, is_chunked=False)
    assert work.tokens == 32768
    assert work.spread_of_tokens == work.spread_of_pairs == 0
    assert work.pairs() == pytest.approx(4 * 8192**2 / 2)


def test_a_window_cuts_pairs():
    work = Workload(8192, 8192)
    assert work.pairs(128) == pytest.approx(128 * 8192 - 128**2 / 2)
    assert work.pairs(8192) == work.pairs(None)


def test_largest_of_grows_over_its_table_and_beyond():
    values = [largest_of(n) for n in range(1, 73)]
    assert values == sorted(values)
    assert largest_of(9) == pytest.approx(1.485, abs=0.01)  # tables of order statistics


def test_more_ranks_have_more_uneven_experts():
    assert excess_load(R1, 1) == 0
    assert excess_load(R1, 4) < excess_load(R1, 8) < excess_load(R1, 16)


@given(models, st.integers(1, 128))
def test_no_rank_gets_more_than_every_token_of_the_group(model, ranks):
    """The mean rank gets 1 / ranks of all choices, and a rank with one expert one of top_k."""
    assume(ranks <= model.num_experts)
    assert 0 <= excess_load(model, ranks) <= ranks - 1
    if ranks == model.num_experts:
        assert excess_load(model, ranks) <= model.num_experts / model.top_k - 1


def test_tensor_parallelism_divides_work_but_not_its_all_reduces():
    work = Workload(8192, 8192)
    one, four = (tensor_parallel_step(R1, R1_RATES, work, n) for n in (1, 4))
    assert one / 4 < four < one


def test_a_slow_rank_costs_dwdp_its_own_share_only():
    work = Workload(32768, 8192)
    speeds = [
        throughput(R1, R1_RATES, work, R1_SPREAD, implementation.VLLM_DWDP, job=Job(slowest))
        for slowest in (1.0, 0.5)
    ]
    assert speeds[1].dwdp == pytest.approx(speeds[0].dwdp * 3.5 / 4)
    for other in ("expert_parallel", "tensor_parallel", "replicas"):
        assert getattr(speeds[1], other) == pytest.approx(getattr(speeds[0], other) / 2)


@pytest.mark.parametrize(
    ("num_prompts", "max_in_flight", "seconds"),
    [
        (80, 16, 48 / 1.5 + 16 / 0.5),  # as the default load of bench serve
        (80, 64, 40 / 0.5),  # each rank gets its half at once
        (1, 16, 0.5 / 0.5),
        (10**9, 16, 10**9 / 1.5),  # long enough for the end not to matter
    ],
)
def test_a_slow_rank_works_off_the_prompts_that_it_holds_at_the_end(
    num_prompts, max_in_flight, seconds
):
    """Two ranks, of which one takes a second for each prompt and the other one two seconds."""
    found = Job(0.5, num_prompts, max_in_flight).mean_speed(2)
    assert found == pytest.approx(num_prompts / 2 / seconds)


@pytest.mark.parametrize("num_prompts", [None, 3, 1000])
def test_a_job_of_equal_ranks_ends_everywhere_at_once(num_prompts):
    assert Job(1.0, num_prompts).mean_speed(4) == pytest.approx(1)


def test_nothing_is_copied_where_peers_memory_is_as_fast():
    machine = dataclasses.replace(GB200, link=GB200.memory_rate)
    rates, work = Rates.achieved(machine, 4), Workload(64, 64)
    found = dwdp_layer(R1, rates, work, R1_SPREAD, implementation.VLLM_DWDP)
    assert found.copy == 0
    assert break_even_tokens(R1, rates, R1_SPREAD, isl=64, length_ratio=1) == 0


def test_a_mesh_has_a_link_for_each_peer():
    machine = read_hardware("mi355x")
    assert machine.link_among(2) == pytest.approx(76.8e9)
    assert machine.link_among(8) == pytest.approx(537.6e9)


def test_steps_with_few_tokens_in_flight_lose_on_a_mesh():
    """MI355X lost with steps of up to 32K tokens, of which 4K to 8K were in flight."""
    machine, model = read_hardware("mi355x"), R1
    rates, spread = Rates.achieved(machine, 8), spread_experts(model, 8)
    for count in (4096, 8192):
        work = Workload(count, count)
        found = throughput(model, rates, work, spread, implementation.PUBLISHED_SLICED)
        assert found.dep_over_dwdp < 1


def test_gpt_oss_gains_on_b200():
    """SGLang: 1.16x to 1.37x over expert parallelism, 16K tokens in steps, prompts of 4K to 16K."""
    model, rates = MODELS["gpt-oss-120b"], Rates.achieved(HARDWARE["b200"], 4)
    for isl in (4096, 8192, 16384):
        work, spread = Workload(16384, isl), spread_experts(model, 4)
        found = throughput(model, rates, work, spread, implementation.PUBLISHED_SLICED)
        assert 1 < found.dep_over_dwdp < 1.5
