# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The ranks of a group in one process, with vLLM's own MoE layers and real memory files."""

from contextlib import contextmanager

import pytest
import torch
from support.gpu_ranks import keep_chosen
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from vllm_dwdp._core import HandleType
from vllm_dwdp.config import DwdpConfig, FetchMode
from vllm_dwdp.device import HostMemory
from vllm_dwdp.engine.moe.adoption import adopt, layer_layout
from vllm_dwdp.engine.moe.bound_layers import BoundLayers
from vllm_dwdp.engine.moe.context import MoeContext
from vllm_dwdp.engine.moe.experts_op import register_op
from vllm_dwdp.engine.moe.kernel.recipe import note_arguments
from vllm_dwdp.engine.moe.layer_classes import new_layer
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.layout.rank_layout import RankLayout

HIDDEN = 160
INTERMEDIATE = 72
"""vLLM pads this to 96, a multiple of 32, so a 16-bit expert of w2_weight fills 7.5 pages."""
TOP_K = 3
NUM_LAYERS = 2
SLICE_BYTES = 1 << 14


@contextmanager
def distributed_by_one(store):
    """Make vLLM's process groups, of this process alone."""
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        initialize_model_parallel()
        register_op()
        # vLLM's kernel uses the AMX registers without asking Linux for them. In a model PyTorch has
        # asked before, for another matrix product; so run one here.
        torch.ones(32, 32, dtype=torch.bfloat16) @ torch.ones(32, 32, dtype=torch.bfloat16)
        yield
        cleanup_dist_env_and_memory()


class Model:
    """MoE layers without a model around them: all experts, or inside `as_rank` a rank's own."""

    def __init__(self, num_experts, dtype, has_bias, num_layers=NUM_LAYERS):
        self.config = VllmConfig()
        self.dtype = dtype
        with set_current_vllm_config(self.config):
            self.layers = [
                FusedMoEFactory(
                    num_experts=num_experts,
                    top_k=TOP_K,
                    hidden_size=HIDDEN,
                    intermediate_size=INTERMEDIATE,
                    params_dtype=dtype,
                    has_bias=has_bias,
                    prefix=f"layers.{i}.experts",
                )
                for i in range(num_layers)
            ]
        self.experts = [layer.routed_experts for layer in self.layers]

    def load(self, checkpoint):
        for experts, tensors in zip(self.experts, checkpoint, strict=True):
            for (name, shard_id, expert), tensor in tensors.items():
                parameter = getattr(experts, name)
                experts.weight_loader(parameter, tensor, name, shard_id, expert)
            experts.quant_method.process_weights_after_loading(experts)
        return self

    @torch.inference_mode()
    def run(self, x, logits, layer_idxs=None):
        """Run each layer on the same x [num_tokens, HIDDEN] and logits; returns outputs as x."""
        order = range(len(self.layers)) if layer_idxs is None else layer_idxs
        with set_current_vllm_config(self.config), set_forward_context(None, self.config):
            return [self.layers[i](x.clone(), logits) for i in order]


def make_checkpoint(num_experts, dtype, has_bias, num_layers=NUM_LAYERS):
    """Random weights, for each layer a dictionary (parameter, shard, expert) -> tensor."""
    torch.manual_seed(0)
    shapes = {
        ("w13_weight", "w1"): (INTERMEDIATE, HIDDEN),
        ("w13_weight", "w3"): (INTERMEDIATE, HIDDEN),
        ("w2_weight", "w2"): (HIDDEN, INTERMEDIATE),
    }
    if has_bias:
        shapes |= {("w13_bias", "w1"): (INTERMEDIATE,), ("w13_bias", "w3"): (INTERMEDIATE,)}
        shapes |= {("w2_bias", "w2"): (HIDDEN,)}
    return [
        {
            (*key, expert): torch.randn(shape).to(dtype) / 8
            for key, shape in shapes.items()
            for expert in range(num_experts)
        }
        for _ in range(num_layers)
    ]


@contextmanager
def as_rank(rank, dwdp_size, num_experts_per_worker, **callbacks):
    """MoE layers built in the `with` block are those of this rank. callbacks: see MoeContext."""
    context = MoeContext(
        rank=rank,
        dwdp_size=dwdp_size,
        num_experts_per_worker=num_experts_per_worker,
        **callbacks,
    )
    context.enter()
    note_arguments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoutedExperts, "__new__", staticmethod(new_layer))
        yield context


def forget_models():
    """Enter a context without layers, so that nothing keeps the last model."""
    MoeContext(rank=0, dwdp_size=1, num_experts_per_worker=None).enter()


class Group:
    """All ranks of a group. They have loaded and adopted their experts, and share descriptors.

    make_memory: makes the memory of a rank, given its number. counts: of chosen experts, by rank,
    layer and expert; ranks keep copies of all chosen ones.
    """

    def __init__(
        self,
        dwdp_size,
        num_experts_per_worker,
        checkpoint,
        make_model,
        make_memory=HostMemory,
        counts=None,
    ):
        self._make_memory = make_memory
        self._counts = counts
        self.models, self.contexts = [], []
        for rank in range(dwdp_size):
            with as_rank(rank, dwdp_size, num_experts_per_worker) as context:
                self.models.append(make_model().load(checkpoint))
            self.contexts.append(context)
        self.adopted = []
        self.layouts = None
        self.memories, self.rank_experts = {}, {}
        self.adopt_all()

    def adopt_all(self):
        for rank in range(len(self.models)):
            self.memories[rank] = self._make_memory(rank)
            self.adopt(rank)

    def adopt(self, rank):
        """Move a rank's experts to its memory, as `vllm_dwdp.engine.moe.adoption` does."""
        memory = self.memories[rank]
        experts = self.models[rank].experts
        if self.layouts is None:
            layouts = tuple(layer_layout(e, memory.driver.granularity) for e in experts)
            self.layouts = [RankLayout(layouts, r) for r in range(len(self.models))]
            if self._counts is not None:
                self.layouts = keep_chosen(self.layouts, self._counts)
        layout = self.layouts[rank]
        self.rank_experts[rank] = adopt(memory, experts, layout, self.adopted.append)

    @property
    def memory(self):
        """The memory of rank 0."""
        return self.memories[0]

    @property
    def driver(self):
        return self.memory.driver

    def bind(self, rank, mode=FetchMode.DIRECT, num_slots=2, poison=None, take_handles=None):
        """Bind a rank's views and slots; returns its model, whose steps run in `mode`.

        poison: see poison.py. take_handles: see ExpertViews; by default it asks this group's ranks.
        """
        experts, memory, model = self.rank_experts[rank], self.memories[rank], self.models[rank]
        layout = experts.layout
        layers = BoundLayers(self.contexts[rank], layout, memory)
        experts.connect(take_handles or self.take_handles)
        layers.bind(experts.direct)
        slots = experts.make_slots(num_slots, slice_bytes=SLICE_BYTES)
        for layer_idx in range(layout.num_layers):
            layers.bind_slot(layer_idx, experts.build_on_slot(layer_idx))
        copier = memory.make_copier(DwdpConfig(copy_threads=2))
        copies = experts.copies(memory.make_chosen(copier, layout.num_ranks))
        if poison is not None:
            copier, copies = poison.between(copier, copies, slots, layout.layouts)
        model.slots = slots
        model.scheduler = FetchScheduler(
            copies,
            num_slots=num_slots,
            copier=copier,
            policy=Policy.always(mode),
            counters=FetchCounters(layout.num_layers, layout.num_ranks),
            current_stream=memory.current_stream,
        )
        layers.install(model.scheduler)
        return model

    def take_handles(self, peer, parcel, expected_sizes):
        """Take the descriptors of a peer in this process, without a session."""
        blocks = self.rank_experts[peer].handles(HandleType.FILE_DESCRIPTOR, parcel)
        return [fd for fd, _ in blocks]
