# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How a rank fetches: its copier, its slots, and the policy, settled after vLLM's profiling run.

* Slots and their views exist before vLLM profiles memory, or not at all.
* 'auto' measures what peers' memory costs to read where it lies; where that is next to nothing it
  is 'direct' and takes no slots.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.logger import init_logger

from vllm_dwdp._core import View
from vllm_dwdp.config import AUTO, ConfigError, DwdpConfig, FetchMode
from vllm_dwdp.engine.experts_op import install
from vllm_dwdp.engine.graph_fence import GraphFence
from vllm_dwdp.engine.rank_memory import RankMemory
from vllm_dwdp.engine.routed_experts import DwdpRoutedExperts
from vllm_dwdp.fetch.bandwidth import Bandwidths
from vllm_dwdp.fetch.busy_log import BusyLog
from vllm_dwdp.fetch.compute_probe import ComputeProbe
from vllm_dwdp.fetch.cost_model import CostModel
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.layout import LayerLayout
from vllm_dwdp.memory.slots import LayerCopies, Slots

logger = init_logger("vllm.dwdp")


class Fetching:
    """The fetch side of one rank. Life: constructed, bound, started, settled."""

    def __init__(
        self,
        config: DwdpConfig,
        layouts: Sequence[LayerLayout],
        *,
        rank: int,
        memory: RankMemory,
        max_tokens: int,
        captured_tokens: int,
    ) -> None:
        self._config = config
        self._layouts = layouts
        self._rank = rank
        self._max_tokens = max_tokens
        self._captured_tokens = captured_tokens
        self._memory = memory
        self._copier = memory.make_copier(config)
        self._bandwidths = Bandwidths(0.0, 0.0, 0.0)
        self._layers: Sequence[DwdpRoutedExperts] = ()
        self._scheduler: FetchScheduler | None = None
        self.slots: Slots | None = None
        self._num_peers = layouts[0][0].placement.dwdp_size
        self.counters = FetchCounters(len(layouts), self._num_peers)

    def make_slots(self, direct: Sequence[Sequence[View]]) -> Slots | None:
        """Slots if any step may need them; `direct` are all views of peers' memory."""
        if self._config.fetch == FetchMode.DIRECT or not self._measure(direct):
            return None
        found = self._bandwidths
        if self._config.fetch == AUTO and found.reads_peers_as_own:
            logger.info(
                "fetch=auto: every step reads peers' memory where it lies, at %.1f GB/s, own "
                "memory at %.1f GB/s",
                found.peers / 1e9,
                found.own / 1e9,
            )
            return None
        self.slots = Slots(
            self._memory.slot_driver,
            self._layouts,
            rank=self._rank,
            num_slots=self._config.num_slots,
            slice_bytes=self._config.slice_bytes or self._memory.slice_bytes,
        )
        return self.slots

    def start(self, layers: Sequence[DwdpRoutedExperts], direct: Sequence[Sequence[View]]) -> None:
        """Look at the clock, until `settle`; no request is served before."""
        self._layers = layers
        copies: list[LayerCopies] = []
        if self.slots is not None:
            self._check_router_is_heard(layers)
            chosen = self._memory.make_chosen(self._copier, self._num_peers)
            copies = [self.slots.copies(i, direct[i], chosen) for i in range(len(layers))]
        self._scheduler = FetchScheduler(
            copies,
            num_slots=self.slots.num_slots if self.slots else 0,
            copier=self._copier,
            policy=Policy.always(FetchMode.DIRECT),
            counters=self.counters,
            current_stream=self._memory.current_stream,
        )
        self._probe = ComputeProbe(self._memory.seconds, on_slots=self.slots is not None)
        install(layers, self._probe)

    def settle(self, profile: Callable[[], Any]) -> None:
        """Fix the policy, and run by it from now on. `profile` runs the largest step."""
        assert self._scheduler is not None, "settled after it was started"
        if self.slots is not None:
            self._scheduler.policy = self._policy(profile)
            if FetchMode.PREFETCH in self._scheduler.policy.modes:
                self._scheduler.start()
        if self._config.fetch != AUTO:
            logger.info(
                "fetch=%s, by tokens in a step: %s", self._config.fetch, self.policy.table()
            )
        GraphFence.install(self._scheduler)
        install(self._layers, self._scheduler)
        BusyLog(self.counters).start()

    def stop(self) -> None:
        """No copy is under way when it returns."""
        if self._scheduler is not None:
            self._scheduler.stop()

    def counts(self) -> dict[str, Any]:
        """What was counted, here and by kernels that choose on a GPU."""
        counts = self.counters.snapshot()
        if gathered := self._memory.gathered():
            num_copies, num_hits, *by_peer = gathered
            counts["bytes_fetched"][FetchMode.SELECTIVE.value] = by_peer
            counts["copies"] += num_copies
            counts["selective_hits"] += num_hits
        return counts

    @property
    def policy(self) -> Policy:
        assert self._scheduler is not None, "asked for after it was started"
        return self._scheduler.policy

    def _policy(self, profile: Callable[[], Any]) -> Policy:
        captured = self._captured_tokens
        if self._config.fetch == FetchMode.SELECTIVE:
            return Policy.always(FetchMode.SELECTIVE, captured_tokens=captured)
        model = self._cost_model(profile)
        self._warn_below_break_even(model)
        if self._config.fetch == FetchMode.PREFETCH:
            return Policy.always(FetchMode.PREFETCH, captured_tokens=captured)
        policy = Policy.cheapest(model, max_tokens=self._max_tokens, captured_tokens=captured)
        logger.info("fetch=auto, by tokens in a step: %s; %s", policy.table(), model.describe())
        return policy

    def _cost_model(self, profile: Callable[[], Any]) -> CostModel:
        seconds = self._compute_seconds(profile)
        assert self.slots is not None, "the cost of copies is of interest with slots only"
        layer = self._layers[0]
        copied = max(self.slots.missing_bytes(i) for i in range(len(self._layouts)))
        return CostModel(
            missing_bytes=copied,
            num_experts=layer.global_num_experts,
            top_k=layer.moe_config.experts_per_token,
            bandwidths=self._bandwidths,
            compute_s_per_token=seconds,
        )

    def _compute_seconds(self, profile: Callable[[], Any]) -> float:
        if (given := self._config.compute_us_per_token) is not None:
            return given / 1e6
        if self._probe.seconds_per_token is None:
            profile()
        assert self._probe.seconds_per_token, "vLLM's profiling run runs every layer"
        return self._probe.seconds_per_token

    def _warn_below_break_even(self, model: CostModel) -> None:
        if (needed := model.break_even_tokens) <= self._max_tokens:
            return
        logger.warning(
            "The largest step of this engine has %d tokens, too few to hide a prefetch: it takes "
            "%d (%s). Raise --max-num-batched-tokens, or set dwdp.fetch to 'direct'.",
            self._max_tokens,
            needed,
            model.describe(),
        )

    def _measure(self, direct: Sequence[Sequence[View]]) -> bool:
        """Bandwidths, from the first layer that lacks something; False where none does."""
        for layer_idx, views in enumerate(direct):
            own, peers = self._places(layer_idx, views)
            if peers:
                self._bandwidths = self._given(self._memory.bandwidths(self._copier, own, peers))
                return True
        if self._config.fetch != AUTO:
            logger.info("fetch=%s has nothing to fetch: this rank has all", self._config.fetch)
        return False

    def _places(
        self, layer_idx: int, views: Sequence[View]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """A layer's own blocks and its peers', as bytes, where its views show them."""
        own: list[torch.Tensor] = []
        peers: list[torch.Tensor] = []
        for tensor_idx, layout in enumerate(self._layouts[layer_idx]):
            shown = torch.from_dlpack(views[tensor_idx].bytes_tensor())
            for extent in layout.blocks:
                source = layout.source(extent.segment, self._rank, layer_idx, tensor_idx)
                place = shown[extent.start : extent.start + extent.num_bytes]
                (own if source == self._rank else peers).append(place)
        return own, peers

    def _given(self, measured: Bandwidths) -> Bandwidths:
        if (gb_per_s := self._config.link_gb_per_s) is None:
            return measured
        return measured._replace(copies=gb_per_s * 1e9, peers=gb_per_s * 1e9)

    def _check_router_is_heard(self, layers: Sequence[DwdpRoutedExperts]) -> None:
        for layer in layers:
            if layer.quant_method.is_monolithic and self._config.fetch == FetchMode.SELECTIVE:
                raise ConfigError(
                    f"{layer.layer_name}: dwdp.fetch='selective' needs the router's choice, the "
                    f"kernel of {type(layer.quant_method).__name__} keeps it to itself; set "
                    "dwdp.fetch to 'auto', 'direct' or 'prefetch'."
                )
