# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How a rank of real layers settles what its steps do: what is measured, what slots are for."""

import logging

import pytest
import torch
from layer_group import HIDDEN, NUM_LAYERS, Group, Model, make_checkpoint
from log_lines import log_lines
from vllm.model_executor.offloader.base import get_offloader, set_offloader

from vllm_dwdp.config import ConfigError, DwdpConfig, FetchMode
from vllm_dwdp.engine.adoption import bind_layer
from vllm_dwdp.engine.experts_op import install
from vllm_dwdp.engine.fetching import Fetching
from vllm_dwdp.fetch.choice import StepSizes
from vllm_dwdp.memory.expert_views import ExpertViews

pytestmark = pytest.mark.usefixtures("one_process_group", "stock_offloader")
NUM_EXPERTS, MAX_TOKENS, CAPTURED_TOKENS = 6, 64, 4
SLOW_LINK = 1e-3
"""GB/s: to copy a layer takes longer than anything."""


@pytest.fixture
def stock_offloader():
    before = get_offloader()
    yield
    set_offloader(before)


class Rank:
    """Rank 0 of two, from its views on; steps are counted."""

    def __init__(self, **options):
        shape = NUM_EXPERTS, torch.bfloat16, False
        self._group = Group(2, None, make_checkpoint(*shape), lambda: Model(*shape))
        self._model, layouts = self._group.models[0], self._group.layouts[0]
        self.num_steps = 0
        self.fetching = Fetching(
            DwdpConfig(**options),
            self._model.experts,
            layouts,
            rank=0,
            memory=self._group.memory,
            sizes=StepSizes(MAX_TOKENS, CAPTURED_TOKENS),
        )
        views = ExpertViews(
            self._group.driver, layouts, self._group.shards[0], 0, self._group._pull
        )
        direct = [views.build(i) for i in range(NUM_LAYERS)]
        self.slots = self.fetching.make_slots(direct)
        for i, experts in enumerate(self._model.experts):
            on_slot = views.build_on_slot(i, self.slots) if self.slots else None
            bind_layer(self._group.memory, experts, layouts[i], direct[i], on_slot)
        self.fetching.start(direct)

    def run_step(self, num_tokens=MAX_TOKENS):
        self.num_steps += 1
        x, logits = torch.randn(num_tokens, HIDDEN), torch.randn(num_tokens, NUM_EXPERTS)
        return self._model.run(x.bfloat16(), logits.bfloat16())

    def settle(self):
        self.fetching.settle(self.run_step)
        return self.fetching.policy

    def close(self):
        self.fetching.stop()
        install([], fetcher=None)


@pytest.fixture
def make_rank():
    made = []

    def make(**options):
        made.append(Rank(**options))
        return made[-1]

    yield make
    for rank in made:
        rank.close()


def test_more_slots_than_moe_layers_are_refused(make_rank):
    with pytest.raises(ConfigError, match=f"at most the model's {NUM_LAYERS} MoE layers"):
        make_rank(fetch="prefetch", num_slots=NUM_LAYERS + 1)


def test_peers_memory_as_fast_as_own_takes_no_slots_and_no_steps(make_rank):
    rank = make_rank()
    assert rank.slots is None
    assert rank.settle().is_direct
    assert rank.num_steps == 0


def test_copies_that_never_pay_take_no_slots_where_compute_is_given(make_rank):
    rank = make_rank(link_gb_per_s=SLOW_LINK, compute_us_per_token=1e-3)
    assert rank.slots is None
    assert rank.settle().is_direct


def test_copies_that_pay_are_made_without_measuring_what_is_given(make_rank):
    rank = make_rank(link_gb_per_s=SLOW_LINK, compute_us_per_token=5e3)
    policy = rank.settle()
    assert rank.num_steps == 0
    assert policy.mode(CAPTURED_TOKENS) is FetchMode.DIRECT
    assert policy.mode(MAX_TOKENS) is FetchMode.PREFETCH
    rank.run_step()
    assert rank.fetching.counters.steps["prefetch"] == 1


def test_idle_slots_are_warned_of(make_rank):
    rank = make_rank(link_gb_per_s=SLOW_LINK)
    assert rank.slots is not None
    with log_lines(logging.WARNING) as lines:
        assert rank.settle().is_direct
    assert any("No step of this engine copies experts" in line for line in lines)
    (advice,) = (line for line in lines if "too few to hide a prefetch" in line)
    assert advice.endswith("Raise --max-num-batched-tokens."), "auto has chosen already"


def test_measured_steps_run_on_slots_then_in_place_and_are_not_counted(make_rank, monkeypatch):
    rank = make_rank(link_gb_per_s=SLOW_LINK)
    modes = []
    experts = rank._model.experts[0]
    run = type(experts).run

    def note(self, mode, *args):
        modes.append(mode)
        return run(self, mode, *args)

    monkeypatch.setattr(type(experts), "run", note)
    rank.run_step()
    rank.settle()
    in_place, on_slots = [FetchMode.DIRECT] * NUM_LAYERS, [FetchMode.PREFETCH] * NUM_LAYERS
    assert modes == in_place + on_slots * 2 + in_place * 2
    assert sum(rank.fetching.counters.steps.values()) == 0


@pytest.mark.parametrize(("in_place", "extra"), [(5e-6, 2e-6), (2e-6, 0.0)])
def test_reading_in_place_is_dearer_by_what_was_measured(make_rank, monkeypatch, in_place, extra):
    rank = make_rank(link_gb_per_s=SLOW_LINK)
    costs = rank.fetching._costs
    measured = {FetchMode.PREFETCH: 3e-6, FetchMode.DIRECT: in_place}
    monkeypatch.setattr(costs, "_seconds_per_token", lambda run, mode: measured[mode])
    model = costs.measured(rank.run_step)
    assert model.compute_s_per_token == 3e-6
    assert model.direct_extra_s_per_token == pytest.approx(extra)
