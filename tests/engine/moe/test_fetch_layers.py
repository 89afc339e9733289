# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""MoE layers on slots give the unsharded layers' output bit by bit, in any order of modes."""

import gc
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from layer_group import HIDDEN, TOP_K, Group, Model, forget_models, make_checkpoint
from poison import Poison, fill_with_nan
from vllm.model_executor.offloader.base import get_offloader, set_offloader

from vllm_dwdp.config import FetchMode
from vllm_dwdp.engine.moe.context import context
from vllm_dwdp.engine.moe.graph_fence import GraphFence, captured_tokens
from vllm_dwdp.fetch.compute_probe import ComputeProbe
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.rank.expert_counts import ExpertCounts

pytestmark = pytest.mark.usefixtures("one_process_group")
DTYPE = torch.bfloat16
NUM_EXPERTS = 13
MODES = list(FetchMode)
POISON = {"late": Poison(is_late=True), "early": Poison(is_late=False), "real": None}


class Case:
    """Rank 1 of a group, and the unsharded model to compare it with."""

    def __init__(
        self,
        num_layers,
        *,
        dwdp_size=3,
        size=None,
        num_slots=2,
        poison=None,
        num_experts=0,
        counts=None,
    ):
        """num_experts: if given, so many experts with biases. size: experts of a rank.

        counts: see Group.
        """
        self._num_experts = num_experts or NUM_EXPERTS
        shape = self._num_experts, DTYPE, num_experts > 0, num_layers

        def make_model():
            return Model(*shape)

        checkpoint = make_checkpoint(*shape)
        self._stock = make_model().load(checkpoint)
        self._group = Group(dwdp_size, size, checkpoint, make_model, counts=counts)
        self.model = self._group.bind(1, num_slots=num_slots, poison=poison)
        self.counters = self.model.scheduler.counters

    def bytes_of_a_layer(self):
        """Bytes that are copied for the first layer, by the mode that copies."""
        copies = self.model.scheduler._layers[0]
        chosen = self.model.slots._expert_copies(0, self._group.rank_experts[1].direct[0])
        return {
            FetchMode.PREFETCH: sum(copies.bytes_by_peer),
            FetchMode.SELECTIVE: sum(num_bytes for expert in chosen for *_, num_bytes in expert),
        }

    def check(self, mode, *, num_tokens=9, layer_idxs=None):
        """Check that a step gives the unsharded outputs; returns the chosen experts."""
        x = torch.randn(num_tokens, HIDDEN).to(DTYPE)
        logits = torch.randn(num_tokens, self._num_experts).to(DTYPE)
        self.model.scheduler.policy = Policy.always(mode)
        outputs = self.model.run(x, logits, layer_idxs)
        for output, expected in zip(outputs, self._stock.run(x, logits, layer_idxs), strict=True):
            assert expected.isfinite().all()
            assert torch.equal(output.view(torch.uint8), expected.view(torch.uint8))
        return logits.topk(TOP_K).indices.unique().tolist()


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("num_layers", [1, 4, 5])
def test_modes_mixed_step_by_step(num_layers, num_slots, poison):
    case = Case(num_layers, num_slots=num_slots, poison=POISON[poison])
    case.model.scheduler.start()
    torch.manual_seed(num_layers)
    for pick in torch.randint(len(MODES), (25,)).tolist():
        case.check(MODES[pick])
    for mode in (MODES[0], *MODES, *reversed(MODES)):
        case.check(mode)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize(("dwdp_size", "size"), [(2, None), (3, 6), (4, None), (4, 7)])
def test_groups_and_redundant_experts(dwdp_size, size, poison):
    case = Case(3, dwdp_size=dwdp_size, size=size, poison=POISON[poison])
    for mode in MODES * 3:
        case.check(mode)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize(("dwdp_size", "size"), [(2, None), (3, 6)])
def test_copies_of_extra_experts(dwdp_size, size, poison):
    torch.manual_seed(dwdp_size)
    counts = torch.randint(0, 2, (dwdp_size, 3, NUM_EXPERTS)).tolist()
    case = Case(3, dwdp_size=dwdp_size, size=size, poison=POISON[poison], counts=counts)
    context().expert_counts = counted = ExpertCounts([NUM_EXPERTS] * 3, "cpu")
    chosen = [case.check(mode) for mode in MODES * 3]
    without = Case(3, dwdp_size=dwdp_size, size=size)
    for mode, bytes_of in case.bytes_of_a_layer().items():
        assert 0 < bytes_of < without.bytes_of_a_layer()[mode], mode
    for of_layer in counted.read():
        assert {e for e, count in enumerate(of_layer) if count} == set().union(*chosen)
        assert sum(of_layer) == 9 * TOP_K * len(chosen)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("mode", [FetchMode.PREFETCH, FetchMode.SELECTIVE])
def test_layers_called_twice_in_a_step(mode, poison):
    case = Case(4, poison=POISON[poison])
    for order in ([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3]):
        for _ in range(3):
            case.check(mode, layer_idxs=order)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("mode", [FetchMode.PREFETCH, FetchMode.SELECTIVE])
def test_kernel_that_raises_leaves_the_slots_right(mode, poison, monkeypatch):
    case = Case(4, poison=POISON[poison])
    case.check(mode)
    kernel = case.model.experts[2]._readers[mode].quant_method

    def fail(*args, **kwargs):
        raise RuntimeError("out of something")

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "apply", fail)
        with pytest.raises(RuntimeError, match="out of something"):
            case.check(mode)
    for _ in range(3):
        case.check(mode)


def test_measured_steps_between_others_leave_slots_right():
    """Measured steps run on whatever the slots hold, even while copies fill them."""
    case = Case(5, poison=POISON["real"])
    probe = ComputeProbe(time.perf_counter, 2, FetchMode.PREFETCH)
    for num_tokens in (4, 300, 1, 77, 4):
        case.check(FetchMode.PREFETCH, num_tokens=num_tokens)
        context().install(probe)
        x, logits = torch.randn(64, HIDDEN), torch.randn(64, NUM_EXPERTS)
        case.model.run(x.to(DTYPE), logits.to(DTYPE))
        context().install(case.model.scheduler)
        case.check(FetchMode.SELECTIVE, num_tokens=num_tokens)
    assert probe.seconds_per_token > 0


@pytest.mark.parametrize("mode", [FetchMode.PREFETCH, FetchMode.SELECTIVE])
def test_biases_are_read_from_slots_too(mode):
    """The biases fill several pages. Kernels take references to them when they are built."""
    case = Case(2, num_experts=128, dwdp_size=2, poison=POISON["late"])
    experts = case.model.experts[0]
    for _ in range(3):
        case.check(mode)
    on_slot, direct = experts._readers[mode], experts._readers[FetchMode.DIRECT]
    for name, kept in (("w13_bias", "w1_bias"), ("w2_bias", "w2_bias")):
        kernels = [r.quant_method.moe_kernel.fused_experts for r in (on_slot, direct)]
        found = [getattr(kernel, kept).data_ptr() for kernel in kernels]
        assert found == [on_slot._parameters[name].data_ptr(), direct._parameters[name].data_ptr()]
        assert found[0] != found[1]
    assert case.model.slots.pages(0, 2), "the bias has pages in a slot"


@pytest.mark.parametrize("dwdp_size", [1, 2])
def test_only_weights_that_are_read_from_peers_are_marked_as_behind_a_link(dwdp_size):
    """From 0.33 on, vLLM's Triton kernel doesn't read a marked weight once for each token."""
    shape = NUM_EXPERTS, DTYPE, False, 1
    group = Group(dwdp_size, None, make_checkpoint(*shape), lambda: Model(*shape))
    (experts,) = group.bind(0).experts
    for name in ("w13_weight", "w2_weight"):
        marked = {
            mode
            for mode, reader in experts._readers.items()
            if hasattr(getattr(reader, name), "_vllm_is_uva_offloaded")
        }
        assert marked == ({FetchMode.DIRECT} if dwdp_size > 1 else set())
        assert not hasattr(getattr(experts, name), "_vllm_is_uva_offloaded"), "not of the kernel"


def test_each_reader_runs_a_kernel_of_its_own():
    case = Case(1)
    for reader in case.model.experts[0]._readers.values():
        assert reader.quant_method._forward_method.__self__ is reader.quant_method


@pytest.mark.parametrize("after", MODES)
def test_graph_that_writes_slots_between_steps(after):
    case = Case(4)
    GraphFence.install(case.model.scheduler)
    try:
        for _ in range(3):
            case.check(FetchMode.PREFETCH)
            case.model.scheduler.policy = Policy.always(FetchMode.SELECTIVE, captured_tokens=8)
            get_offloader().sync_prev_onload()
            fill_with_nan(pages_of(case.model.slots, 4))  # as a replay of the graph would write
            case.check(after)
    finally:
        set_offloader(None)


@pytest.mark.parametrize(("sizes", "expected"), [(None, 0), ([], 0), ([1, 512, 8], 512)])
def test_captured_tokens_are_those_of_the_largest_graph(sizes, expected):
    config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_capture_sizes=sizes))
    assert captured_tokens(config) == expected


def pages_of(slots, num_layers):
    return [
        (page.address, page.num_bytes)
        for layer_idx in range(num_layers)
        for tensor_idx in range(2)
        for _, page in slots.pages(layer_idx, tensor_idx)
    ]


def test_selective_moves_no_more_than_the_experts_chosen():
    case = Case(4, dwdp_size=2)
    local = set(case.model.experts[0].local_experts)
    row_bytes = sum(rows.row_bytes for rows in case.model.experts[0].rows)
    num_missing = 0
    for _ in range(20):
        num_missing += 4 * len(set(case.check(FetchMode.SELECTIVE, num_tokens=2)) - local)
    moved = sum(case.counters.bytes_fetched["selective"])
    assert 0.9 * num_missing * row_bytes < moved <= 1.05 * num_missing * row_bytes


def test_memory_of_copies_outlives_the_model():
    """A copy may still run when the model is freed, so its source and its pages must stay."""
    case = Case(2)
    addresses = [address for address, _ in pages_of(case.model.slots, 2)]
    for experts in case.model.experts:
        direct = experts._readers[FetchMode.DIRECT]
        addresses += [direct._parameters[name].data_ptr() for name in ("w13_weight", "w2_weight")]
    kept = [layer.everything for layer in case.model.scheduler._layers]
    forget_models()
    del case, experts, direct
    gc.collect()
    assert all(map(is_mapped, addresses))
    del kept
    gc.collect()
    assert not all(map(is_mapped, addresses))


def test_counters_say_what_was_moved_from_whom():
    case = Case(3, dwdp_size=3)
    for _ in range(4):
        case.check(FetchMode.PREFETCH)
    missing = sum(case.model.scheduler._layers[0].bytes_by_peer)
    by_peer = case.counters.bytes_fetched["prefetch"]
    assert by_peer[1] == 0 and by_peer[0] > 0 and by_peer[2] > 0
    assert sum(by_peer) == case.counters.copies * missing
    assert case.counters.steps["prefetch"] == 4
    assert case.counters.slices >= case.counters.copies * 2


def is_mapped(address):
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(at, 16) for at in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False
