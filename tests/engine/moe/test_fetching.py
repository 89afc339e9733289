# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How a rank decides which steps copy: what it measures, and when it makes slots."""

import gc
import json
import logging
from pathlib import Path

import pytest
import torch
from fetching_rank import CAPTURED_TOKENS, MAX_TOKENS, Rank
from layer_group import NUM_LAYERS
from support.log_lines import log_lines
from vllm.model_executor.offloader.base import get_offloader, set_offloader

from vllm_dwdp.config import ConfigError, FetchMode
from vllm_dwdp.device import host
from vllm_dwdp.rank.fetch_costs import NUM_STEPS

pytestmark = pytest.mark.usefixtures("one_process_group", "stock_offloader")
SLOW_LINK = 1e-3
"""GB/s; so slow that copying a layer takes longer than everything else."""


@pytest.fixture
def stock_offloader():
    before = get_offloader()
    yield
    set_offloader(before)


@pytest.fixture
def make_rank():
    made = []

    def make(**options):
        made.append(Rank(**options))
        return made[-1]

    yield make
    for rank in made:
        rank.close()


def num_slot_maps():
    gc.collect()
    return Path("/proc/self/maps").read_text().count("/memfd:dwdp-slots")


def test_more_slots_than_moe_layers_are_refused(make_rank):
    with pytest.raises(ConfigError, match=f"at most the model's {NUM_LAYERS} MoE layers"):
        make_rank(fetch="prefetch", num_slots=NUM_LAYERS + 1, compute_us_per_token=1)


def test_peers_memory_as_fast_as_own_takes_no_slots_and_no_steps(make_rank):
    rank = make_rank()
    assert rank.slots is None
    assert rank.policy.is_direct
    assert rank.num_steps == 0


@pytest.mark.parametrize(("num_nodes", "is_measured"), [(0, False), (1, False), (2, True)])
def test_one_memory_is_never_taken_for_two(make_rank, monkeypatch, num_nodes, is_measured):
    """On a busy machine a rank may find that peers' memory is read slowly."""
    monkeypatch.setattr(host, "read_numa_nodes", lambda: dict.fromkeys(range(num_nodes), 1))
    busy = json.dumps([SLOW_LINK * 1e9, SLOW_LINK * 1e9, 1e12]).encode()
    rank = make_rank(peer={"links": busy}, compute_us_per_token=5e3)
    assert not rank.fetching.bandwidths.reads_peers_as_own
    assert rank.policy.is_direct is not is_measured


def test_auto_takes_no_slots_and_no_steps_where_memory_lacks(make_rank):
    rank = make_rank(link_gb_per_s=SLOW_LINK, has_room=False)
    assert rank.slots is None
    assert rank.policy.is_direct
    assert rank.num_steps == 0


@pytest.mark.parametrize("given", [{"compute_us_per_token": 1e-3}, {}], ids=["given", "measured"])
def test_copies_that_never_pay_take_no_slots(make_rank, given):
    before = num_slot_maps()
    with log_lines(logging.WARNING) as lines:
        rank = make_rank(link_gb_per_s=SLOW_LINK, **given)
    assert rank.slots is None
    assert rank.policy.is_direct
    assert rank.num_steps == (0 if given else 2 * NUM_STEPS)
    (advice,) = (line for line in lines if "too few to hide a prefetch" in line)
    assert advice.endswith("Raise --max-num-batched-tokens."), "auto has chosen already"
    assert num_slot_maps() == before, "the slot of the measured layer is gone"


def test_copies_that_pay_are_made_without_measuring_what_is_given(make_rank):
    rank = make_rank(link_gb_per_s=SLOW_LINK, compute_us_per_token=5e3)
    rank.fetching.settle()
    assert rank.num_steps == 0
    assert rank.policy.mode(CAPTURED_TOKENS) is FetchMode.DIRECT
    assert rank.policy.mode(MAX_TOKENS) is FetchMode.PREFETCH
    rank.run_step()
    assert rank.fetching.counters.steps["prefetch"] == 1


def test_prefetch_that_no_step_can_take_makes_no_slots_and_says_so(make_rank):
    with log_lines(logging.WARNING) as lines:
        rank = make_rank(fetch="prefetch", captured_tokens=MAX_TOKENS, compute_us_per_token=1e6)
    assert rank.slots is None
    assert rank.policy.is_direct
    assert any("no step of this engine prefetches: the largest has 64" in line for line in lines)


def test_measured_steps_run_one_layer_on_a_slot_and_are_not_counted(make_rank):
    modes = []

    def note_modes(rank):
        experts = type(rank.model.experts[0])
        run = experts.run

        def note(self, mode, *args):
            modes.append(mode)
            return run(self, mode, *args)

        patch.setattr(experts, "run", note)

    with pytest.MonkeyPatch.context() as patch:
        rank = make_rank(link_gb_per_s=SLOW_LINK, patch=note_modes)
    in_place = [FetchMode.DIRECT] * NUM_LAYERS
    on_slot = [FetchMode.PREFETCH, *in_place[1:]]
    assert modes == in_place * NUM_STEPS + on_slot * NUM_STEPS
    assert sum(rank.fetching.counters.steps.values()) == 0


def test_measured_layer_computes_on_its_experts(make_rank):
    """A kernel may be faster on zeros, so the measured layer must read its real experts."""
    rank = make_rank(link_gb_per_s=SLOW_LINK)
    for outputs in rank.outputs[1:]:
        assert all(map(torch.equal, outputs, rank.outputs[0]))
    assert all(output.any() for output in rank.outputs[0])


def test_views_of_the_measured_layers_slot_are_not_counted(make_rank):
    measured, given = (
        make_rank(link_gb_per_s=SLOW_LINK, **options).views
        for options in ({}, {"compute_us_per_token": 1e-3})
    )
    assert measured.num_maps == given.num_maps
    assert measured.num_private_bytes == given.num_private_bytes


@pytest.mark.parametrize(("in_place", "extra"), [(5e-6, 2e-6), (2e-6, 0.0)])
def test_reading_in_place_is_dearer_by_what_was_measured(make_rank, in_place, extra):
    measured = {FetchMode.PREFETCH: 3e-6, FetchMode.DIRECT: in_place}

    def measure(rank):
        rank.fetching._costs._seconds_per_token = lambda run, layer_idx, mode: measured[mode]

    rank = make_rank(link_gb_per_s=SLOW_LINK, patch=measure)
    costs = rank.fetching._costs
    missing, compute_s, extra_s = costs.measure_layer(rank.run_step, is_needed=True)
    assert missing == costs.missing_bytes
    assert compute_s == 3e-6
    assert extra_s == pytest.approx(extra)


def test_slowest_figures_of_the_group_decide_for_every_rank(make_rank):
    """Rank 0 would prefetch by its own figures, but the copies of rank 1 are slower."""
    own = {"link_gb_per_s": SLOW_LINK, "compute_us_per_token": 5e3}
    alone = make_rank(**own)
    assert alone.policy.mode(MAX_TOKENS) is FetchMode.PREFETCH
    bandwidths = [SLOW_LINK * 1e6, SLOW_LINK * 1e9, 1e12]
    together = make_rank(peer={"links": json.dumps(bandwidths).encode()}, **own)
    assert together.policy.is_direct
    assert together.fetching.bandwidths.copies == SLOW_LINK * 1e6


def test_peer_that_lacks_nothing_changes_nothing(make_rank):
    options = {"link_gb_per_s": SLOW_LINK, "compute_us_per_token": 5e3}
    nothing = {"links": b"null", "costs of a layer": b"null"}
    assert make_rank(peer=nothing, **options).policy == make_rank(**options).policy


@pytest.mark.parametrize("fetch", ["auto", "direct", "prefetch", "selective"])
def test_rank_takes_part_in_every_gathering_whatever_its_options(make_rank, fetch):
    """Another rank may have other options, and would wait for this one."""
    rank = make_rank(fetch=fetch, compute_us_per_token=1)
    assert rank.gathered == ["links begin", "links", "costs of a layer"]


@pytest.mark.parametrize(("fetch", "is_made"), [("prefetch", False), ("selective", True)])
def test_tables_of_single_experts_are_made_for_selective_steps_only(make_rank, fetch, is_made):
    rank = make_rank(fetch=fetch, compute_us_per_token=1e6)
    rank.fetching.settle()
    rank.run_step()
    assert rank.fetching.counters.steps[fetch] == 1
    assert [c.chosen is not None for c in rank.fetching._scheduler._layers] == [is_made] * 2


def test_links_are_logged_and_counted_by_peer(make_rank):
    with log_lines(logging.INFO) as lines:
        rank = make_rank(link_gb_per_s=SLOW_LINK, compute_us_per_token=1)
    found = rank.fetching.counts()["link_gb_per_s"]
    assert found["copies"][0] is None and found["copies"][1] > SLOW_LINK, "measured, not given"
    assert found["reads"][1] > SLOW_LINK and found["own"] > SLOW_LINK
    assert any(f"rank 1 {found['copies'][1]:.1f} and" in line for line in lines)
