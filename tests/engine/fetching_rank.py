# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank of vLLM's own MoE layers, which decides how it fetches; there is no engine."""

import torch
from layer_group import HIDDEN, NUM_LAYERS, Group, Model, forget_models, make_checkpoint

from vllm_dwdp.config import DwdpConfig, usable_slots
from vllm_dwdp.engine.moe.bound_layers import BoundLayers
from vllm_dwdp.fetch.choice import StepSizes
from vllm_dwdp.rank.fetching import Fetching

NUM_EXPERTS, MAX_TOKENS, CAPTURED_TOKENS = 6, 64, 4


class Rank:
    """Rank 0 of two, which binds its views and decides how to fetch; counts the steps it runs.

    peer: by the name of a gathering, what rank 1 sends; by default the same as rank 0.
    """

    def __init__(
        self, *, peer=None, captured_tokens=CAPTURED_TOKENS, patch=None, has_room=True, **options
    ):
        config = DwdpConfig(**options)
        shape = NUM_EXPERTS, torch.bfloat16, False
        self._group = Group(2, None, make_checkpoint(*shape), lambda: Model(*shape))
        self.model = self._group.models[0]
        experts = self._group.rank_experts[0]
        experts.layout = experts.layout.with_slots(usable_slots(config.num_slots, NUM_LAYERS))
        layers = BoundLayers(self._group.contexts[0], experts.layout, self._group.memory)
        self._peer = peer or {}
        self.num_steps = 0
        self.outputs = []
        self.gathered = []
        self.fetching = Fetching(
            config,
            layers,
            experts,
            memory=self._group.memory,
            sizes=StepSizes(MAX_TOKENS, captured_tokens),
            gather=self._gather,
            job_ranks=range(2),
            has_room=has_room,
            end_rank=lambda: None,
        )
        if patch is not None:
            patch(self)
        experts.connect(self._group.take_handles)
        self.views = experts.views
        layers.bind(experts.direct)
        self.fetching.decide(self.run_step)
        self.slots = self.fetching.make_slots()
        if self.slots:
            for layer_idx in range(NUM_LAYERS):
                layers.bind_slot(layer_idx, experts.build_on_slot(layer_idx))
        self.fetching.start()

    def _gather(self, name, own):
        self.gathered.append(name)
        return [own, self._peer.get(name, own)]

    def run_step(self, num_tokens=MAX_TOKENS):
        self.num_steps += 1
        torch.manual_seed(0)
        x, logits = torch.randn(num_tokens, HIDDEN), torch.randn(num_tokens, NUM_EXPERTS)
        self.outputs.append(self.model.run(x.bfloat16(), logits.bfloat16()))

    @property
    def policy(self):
        return self.fetching.policy

    def close(self):
        self.fetching.stop()
        forget_models()
