# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What holds for every scenario: tokens and bytes add up, and the same seed gives the same."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from simulated import run

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.costs import LayerCosts
from vllm_dwdp.simulation.dispatch import Dispatch
from vllm_dwdp.simulation.pull_order import Order
from vllm_dwdp.simulation.scenario import Strategy
from vllm_dwdp.simulation.sections import Copies, Pulls
from vllm_dwdp.simulation.speeds import Speeds
from vllm_dwdp.simulation.workload import Workload

seconds = st.floats(0, 0.01)


@st.composite
def layers(draw):
    return LayerCosts(
        num_layers=draw(st.integers(1, 5)),
        peer_bytes=draw(st.floats(1, 100)),
        ingress_bytes_per_s=draw(st.floats(10, 1000)),
        egress_bytes_per_s=draw(st.floats(10, 1000)),
        attention_s_per_token=draw(seconds),
        experts_s_per_token=draw(seconds),
        experts_least_s=draw(seconds),
        barrier_s=draw(seconds),
        fixed_step_s=0.001,
    )


@st.composite
def prompts(draw):
    rows = draw(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 400)), min_size=1, max_size=20))
    return [Request(idx, time, tokens) for idx, (time, tokens) in enumerate(sorted(rows))]


@st.composite
def settings_of_ranks(draw):
    group = draw(st.integers(1, 4))
    return {
        "ranks": group * draw(st.integers(1, 3)),
        "dwdp_size": group,
        "max_num_batched_tokens": draw(st.integers(1, 300)),
        "chunked_prefill": draw(st.booleans()),
        "num_slots": draw(st.integers(1, 3)),
        "strategy": draw(st.sampled_from(Strategy)),
        "copies": Copies(
            pulls=draw(st.sampled_from(Pulls)),
            slice_mib=draw(st.floats(10, 200)) / 2**20,
            in_flight=draw(st.integers(1, 4)),
            order=draw(st.sampled_from(Order)),
        ),
        "speeds": Speeds(drift=draw(st.floats(0, 0.3)), jitter=draw(st.floats(0, 0.3))),
        "routing_skew": draw(st.floats(0, 0.5)),
        "start_within_s": draw(st.floats(0, 5)),
        "seed": draw(st.integers(0, 99)),
    }


cases = given(layers(), prompts(), settings_of_ranks())


@settings(max_examples=150, deadline=None)
@cases
def test_every_token_is_served_once(layer, requests, given_ranks):
    outcome = run(layer=layer, requests=requests, **given_ranks)
    assert outcome.tokens == sum(request.num_tokens for request in requests)
    assert outcome.num_requests == len(requests)


@settings(max_examples=100, deadline=None)
@cases
def test_bytes_fetched_are_steps_times_bytes_and_the_filled_slots(layer, requests, given_ranks):
    given_ranks["strategy"] = Strategy.DWDP
    outcome = run(layer=layer, requests=requests, **given_ranks)
    layer_bytes = layer.peer_bytes * (given_ranks["dwdp_size"] - 1)
    slots = min(given_ranks["num_slots"], layer.num_layers)
    for rank in outcome.ranks:
        fetched = rank.steps * layer.num_layers + slots
        assert rank.bytes_fetched == pytest.approx(fetched * layer_bytes)


@settings(max_examples=100, deadline=None)
@cases
def test_no_rank_is_faster_than_its_links_or_waits_longer_than_it_runs(
    layer, requests, given_ranks
):
    outcome = run(layer=layer, requests=requests, **given_ranks)
    for rank in outcome.ranks:
        assert rank.copy_bytes_per_s <= layer.ingress_bytes_per_s * (1 + 1e-6)
        assert 0 <= rank.exposed_s <= rank.busy_s * (1 + 1e-9)
    assert not outcome.rivals or math.isclose(sum(outcome.rivals), 1)
    assert len(outcome.rivals) <= max(1, given_ranks["dwdp_size"] - 1) * 4


@settings(max_examples=50, deadline=None)
@cases
def test_the_same_seed_gives_the_same_figures(layer, requests, given_ranks):
    first, second = (run(layer=layer, requests=requests, **given_ranks) for _ in range(2))
    assert first == second


def workload(**changes):
    section = {
        "num_requests": 500,
        "lengths": {"kind": "lognormal", "median_tokens": 100, "sigma": 1.0, "most_tokens": 900},
        "arrivals": {"kind": "poisson", "per_s": 10.0},
        **changes,
    }
    return TypeAdapter(Workload).validate_json(json.dumps(section))


def test_another_seed_gives_other_prompts():
    assert workload().draw(1) == workload().draw(1)
    assert workload().draw(1) != workload().draw(2)


def test_arrivals_do_not_shift_the_lengths():
    at_once = workload(arrivals={"kind": "at_once"}).draw(1)
    assert [r.num_tokens for r in at_once] == [r.num_tokens for r in workload().draw(1)]
    assert {r.arrival_s for r in at_once} == {0.0}


@pytest.mark.parametrize(
    ("lengths", "least", "most", "median"),
    [
        ({"kind": "constant", "tokens": 70}, 70, 70, 70),
        ({"kind": "uniform", "tokens": 1000, "least_share": 0.5}, 500, 1000, 750),
        (
            {"kind": "lognormal", "median_tokens": 100, "sigma": 1.0, "most_tokens": 900},
            1,
            900,
            100,
        ),
        ({"kind": "pareto", "least_tokens": 50, "alpha": 1.0, "most_tokens": 5000}, 50, 5000, 100),
    ],
)
def test_lengths_keep_to_their_distribution(lengths, least, most, median):
    drawn = workload(num_requests=4000, lengths=lengths).draw(3)
    tokens = sorted(request.num_tokens for request in drawn)
    assert least <= tokens[0] <= tokens[-1] <= most
    assert tokens[2000] == pytest.approx(median, rel=0.1)


def test_prompts_arrive_at_the_given_rate():
    drawn = workload(num_requests=4000).draw(3)
    assert drawn[-1].arrival_s == pytest.approx(400, rel=0.1)


def test_dispatch_by_pending_tokens_spares_a_rank_with_a_long_prompt():
    lengths = (900, 100, 100, 100, 100, 100, 100, 100)
    requests = [Request(idx, 0.0, tokens) for idx, tokens in enumerate(lengths)]
    in_turn, by_load = (
        run(2, LayerCosts(1, 0, 1, 1, 1.0, 1.0), requests, dispatch=dispatch)
        for dispatch in Dispatch
    )
    assert [rank.tokens for rank in in_turn.ranks] == [1200, 400]
    assert [rank.tokens for rank in by_load.ranks] == [900, 700]


def test_dispatch_by_pending_tokens_forgets_those_that_were_served():
    requests = [Request(0, 0.0, 500), Request(1, 1000.0, 100)]
    layer = LayerCosts(1, 0, 1, 1, 1.0, 1e-9)
    outcome = run(2, layer, requests, dispatch=Dispatch.PENDING_TOKENS)
    assert [rank.tokens for rank in outcome.ranks] == [600, 0]


def test_a_rank_is_not_blamed_for_the_time_before_its_first_prompt():
    outcome = run(1, LayerCosts(1, 0, 1, 1, 0.01, 0.01), [Request(0, 50.0, 100)])
    assert outcome.tokens_per_s == pytest.approx(50)
    assert outcome.makespan_s == pytest.approx(52)
