# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Layers without a model: real copies in host memory by the real copier, kernels that take a time.

Each layer lacks the experts of two peers, ranks 1 and 2 of the group.
"""

import time

import torch

from vllm_dwdp._core import ChosenExperts, CopyList, HostCopier
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.base import ChosenIds
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.memory.slots import LayerCopies
from vllm_dwdp.rank.tracing import Tracing

PEERS = (1, 2)
EXPERTS_OF_PEER = 4


class HostLayers:
    """A rank's layers with their scheduler.

    kernel_s, between_s: how long the kernel of a layer takes, and the rest of the model after it.
    expert_bytes: of one expert, which is one copy. fetcher: what the layers call.
    """

    def __init__(
        self,
        *,
        num_layers=6,
        num_slots=2,
        expert_bytes=1 << 18,
        num_threads=1,
        kernel_s=0.0,
        between_s=0.0,
    ):
        self.num_layers = num_layers
        self.kernel_s, self.between_s = kernel_s, between_s
        num_experts = len(PEERS) * EXPERTS_OF_PEER
        self.layer_bytes = num_experts * expert_bytes
        self._blocks = torch.ones(num_experts, expert_bytes, dtype=torch.uint8)
        self._slots = torch.zeros(num_slots, num_experts, expert_bytes, dtype=torch.uint8)
        self.copier = HostCopier(num_threads=num_threads)
        self.counters = FetchCounters(num_layers, len(PEERS) + 1)
        self.scheduler = self.fetcher = FetchScheduler(
            [self._copies(layer, self._slots[layer % num_slots]) for layer in range(num_layers)],
            num_slots=num_slots,
            copier=self.copier,
            policy=Policy.always(FetchMode.PREFETCH),
            counters=self.counters,
        )
        self.tracing = Tracing(
            self.scheduler,
            self.copier,
            num_layers=num_layers,
            install=self._install,
            counts=self.counters.snapshot,
        )

    def step(self, mode=FetchMode.PREFETCH, num_tokens=64, num_chosen=5):
        """Run all layers; of a selective step, the first experts are chosen."""
        self.scheduler.policy = Policy.always(mode)
        ids = torch.arange(num_chosen)
        for layer in range(self.num_layers):
            chosen = ChosenIds(ids.data_ptr(), ids.numel(), ids.element_size())
            fetcher = self.fetcher
            taken = fetcher.wait(layer, num_tokens, chosen)
            _pass(self.kernel_s)
            fetcher.release(layer, taken)
            _pass(self.between_s)

    def recorded(self, num_steps, mode=FetchMode.PREFETCH, *, extra_steps=1, **options):
        """Record steps, run `extra_steps` more, and return the recording."""
        self.tracing.start(num_steps)
        for _ in range(num_steps + extra_steps):
            self.step(mode, **options)
        return self.tracing.take()

    def as_of_rank(self, recording, rank=0, host="here"):
        """The recording as a worker sends it."""
        return recording.to_dict() | {
            "rank": rank,
            "job_ranks": [0, 1, 2],
            "dwdp_rank": 0,
            "host": host,
            "memory": "host",
            "model": "no model",
            "layers": [f"layers.{layer}.experts" for layer in range(self.num_layers)],
        }

    def _install(self, fetcher):
        self.fetcher = fetcher

    def _copies(self, layer, slot):
        """A round has an expert of each peer; every copy reads the same blocks."""
        experts = [
            (
                PEERS[i // EXPERTS_OF_PEER],
                slot[i].data_ptr(),
                self._blocks[i].data_ptr(),
                len(slot[i]),
            )
            for i in range(len(self._blocks))
        ]
        rounds = [experts[i::EXPERTS_OF_PEER] for i in range(EXPERTS_OF_PEER)]
        slices = [(peer, num_bytes) for one in rounds for peer, _, _, num_bytes in one]
        everything = CopyList(
            [[tuple(copy[1:]) for copy in one] for one in rounds],
            layer=layer,
            peers=[peer for peer, _ in slices],
        )
        chosen = ChosenExperts(self.copier, [[expert] for expert in experts], len(PEERS) + 1)
        by_peer = [sum(size for of, size in slices if of == peer) for peer in range(3)]
        return LayerCopies(everything, chosen, tuple(by_peer), tuple(slices))


def _pass(seconds):
    if seconds:
        time.sleep(seconds)
