# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A model that doesn't fit is refused before loading, with sizes and the options that help."""

import json
import logging
from types import SimpleNamespace

import pytest
from model_loading import load_rank
from moe_checkpoints import write_family
from support.log_lines import log_lines

from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.engine.worker.memory_check import MemoryCheck, Need, VllmLimits
from vllm_dwdp.engine.worker.shared_gpus import GpuUse, check_shared_gpus
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.limits import LimitError

GIB, PAGE = 1 << 30, 2 << 20
NUM_LAYERS, NUM_EXPERTS = 4, 8
OTHER = 2 * GIB
"""Other weights of a rank.

Two ranks share four layers with eight experts of 256 MiB: each owns 4 GiB and lacks 1 GiB a layer.
"""


def check(
    *, budget=None, kv_cache=None, num_experts_per_worker=None, may_use_host=False, **options
):
    placement = Placement.make(
        num_experts=NUM_EXPERTS, dwdp_size=2, num_experts_per_worker=num_experts_per_worker
    )
    layout = (TensorLayout(ExpertTensor("w13_weight", GIB // 4), placement, PAGE),)
    return MemoryCheck(
        DwdpConfig(num_experts_per_worker=num_experts_per_worker, **options),
        RankLayout((layout,) * NUM_LAYERS, rank=0, num_slots=options.get("num_slots", 2)),
        job_rank=4,
        other_bytes=OTHER,
        limits=VllmLimits(budget, kv_cache),
        may_use_host=may_use_host,
    )


def run(made, **options):
    """Run a check; returns what it logs. options: see `has_room`."""
    with log_lines(logging.INFO) as lines:
        has_room(made, **options)
    return lines


def has_room(made, *, free=100 * GIB, is_taken_at_once=True, peers=(), peers_have_room=()):
    """Run a check; returns whether the group has room for slots.

    peers: what other ranks need. peers_have_room: whether they have room for slots.
    """
    memory = SimpleNamespace(
        place="GPU 0", free_bytes=lambda: free, is_taken_at_once=is_taken_at_once
    )
    sent = {"memory": peers, "slots": peers_have_room}

    def gather(name, payload):
        return [payload, *(json.dumps(peer).encode() for peer in sent[name])]

    return made.run(memory, gather)


def test_estimate_is_logged_with_its_parts():
    (line,) = run(check(fetch="prefetch", budget=50 * GIB))
    assert line == (
        "dwdp rank 4 will hold 8.00 GiB of weights: 4.00 GiB of own experts, 0.00 GiB of private "
        "pages, 2.00 GiB of slots, 2.00 GiB of other weights"
    )
    (line,) = run(check(budget=50 * GIB))
    assert line.endswith("(slots only if copies turn out to pay)")


def test_model_beyond_vllms_budget_is_refused_with_the_options_that_help():
    with pytest.raises(LimitError) as refusal:
        run(check(fetch="prefetch", budget=8 * GIB))
    sentence = str(refusal.value)
    assert "8.00 GiB of weights" in sentence and "2.00 GiB of slots" in sentence
    assert "vLLM may use 8.00 GiB in all" in sentence
    for option in (
        "raise --gpu-memory-utilization",
        "set dwdp.num_slots to 1 (1.00 GiB less)",
        "set dwdp.fetch to 'direct' (2.00 GiB less)",
        "or start more ranks (--data-parallel-size)",
    ):
        assert option in sentence
    assert "num_experts_per_worker" not in sentence


def test_redundant_experts_are_named_as_what_could_go():
    with pytest.raises(LimitError, match=r"num_experts_per_worker \(2\.00 GiB less\)"):
        run(check(fetch="direct", num_experts_per_worker=6, budget=7 * GIB))


def test_auto_makes_no_slots_where_they_do_not_fit():
    *_, warning = run(check(budget=7 * GIB))
    assert "fetch=auto reads in place" in warning
    assert not has_room(check(budget=7 * GIB))
    assert has_room(check(budget=8 * GIB))
    assert not has_room(check(budget=8 * GIB), peers_have_room=[True, False]), "nor do its peers"
    assert has_room(check(fetch="direct", budget=7 * GIB)), "there will be none"
    assert "Slots for copies of experts would take 2.00 GiB of dwdp rank 4" in warning
    assert "leave 0.00 GiB" in warning
    assert "set dwdp.num_slots to 1 (1.00 GiB less)" in warning
    with pytest.raises(LimitError):
        run(check(budget=6 * GIB))


def test_slots_that_leave_less_than_they_take_are_warned_of():
    *_, warning = run(check(fetch="prefetch", budget=9 * GIB))
    assert "leave 1.00 GiB for activations and the KV cache" in warning
    assert len(run(check(fetch="prefetch", budget=10 * GIB))) == 1


@pytest.mark.parametrize("is_taken_at_once", [True, False])
def test_layer_twice_in_memory_and_the_kv_cache_must_fit_what_is_free(is_taken_at_once):
    """is_taken_at_once: on a GPU, free memory no longer has the memory of the parameters."""
    made = check(fetch="direct", kv_cache=3 * GIB)
    needed = (4 + 1 + 2 + 3) * GIB
    free = needed - (4 + 2) * GIB if is_taken_at_once else needed
    assert len(run(made, free=free, is_taken_at_once=is_taken_at_once)) == 1
    with pytest.raises(LimitError) as refusal:
        run(made, free=free - 1, is_taken_at_once=is_taken_at_once)
    sentence = str(refusal.value)
    assert "10.00 GiB" in sentence and "3.00 GiB of KV cache" in sentence
    assert "1.00 GiB of a layer that is in memory twice" in sentence


def test_ranks_that_share_a_memory_add_up():
    made = check(fetch="direct")
    own_need = 7 * GIB
    for place, fits in (("GPU 1", True), ("GPU 0", False)):
        peer = Need(place, 1 * GIB, 6 * GIB, own_need)
        if fits:
            run(made, free=GIB, peers=[peer])
        else:
            with pytest.raises(LimitError, match=r"on GPU 0 for 2 rank\(s\)"):
                run(made, free=GIB, peers=[peer])


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({}, "set dwdp.host_experts to 'auto'"),
        ({"host_experts": 1}, "raise dwdp.host_experts (1.00 GiB less for each)"),
        ({"num_experts_per_worker": 6}, None),
    ],
)
def test_host_memory_is_offered_where_it_can_be_used(options, remedy):
    with pytest.raises(LimitError) as refusal:
        run(check(fetch="direct", budget=4 * GIB, may_use_host=True, **options))
    assert (remedy or "") in str(refusal.value)
    assert ("host_experts" in str(refusal.value)) == (remedy is not None)


def test_nothing_is_read_of_a_model_that_is_refused(tmp_path, one_process_group):
    def refuse(model):
        assert all(p.isnan().all() for p in model.parameters()), "as they were made"
        raise LimitError("too large")

    folder = write_family(tmp_path / "model", "qwen3_moe", is_fused=False)
    with pytest.raises(LimitError):
        load_rank(folder, 0, 2, before_loading=refuse)


@pytest.mark.parametrize(
    ("gpus", "kv_cache_bytes", "names"),
    [
        (["a", "b"], [None, None], None),
        ([None, None], [None, None], None),
        (["a", "a"], [1, 1], None),
        (["a", "a"], [1, None], "4 and 5 share a"),
        (["b", "a", "c", "a"], [None] * 4, "5 and 7 share a"),
    ],
)
def test_ranks_on_one_gpu_need_the_size_of_their_kv_caches(gpus, kv_cache_bytes, names):
    uses = [GpuUse(*use) for use in zip(gpus, kv_cache_bytes, strict=True)]

    def gather(name, payload):
        return [payload, *(json.dumps(use).encode() for use in uses[1:])]

    if names is None:
        check_shared_gpus(uses[0], gather, first_rank=4)
        return
    with pytest.raises(LimitError, match="--kv-cache-memory-bytes") as refusal:
        check_shared_gpus(uses[0], gather, first_rank=4)
    assert f"dwdp ranks {names}" in str(refusal.value)
