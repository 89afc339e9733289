# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How a rank fetches: its copier, its slots, and the policy, settled when there is a KV cache.

* Slots and their views exist before vLLM profiles memory, or not at all.
* 'auto' measures what peers' memory costs to read where it lies. Where that is next to nothing, and
  where it is known before any step that no copy pays, it is 'direct' and takes no slots.
"""

from collections.abc import Sequence
from typing import Any

from vllm.logger import init_logger

from vllm_dwdp._core import View
from vllm_dwdp.config import AUTO, ConfigError, DwdpConfig, FetchMode, usable_slots
from vllm_dwdp.engine.experts_op import InPlace, install
from vllm_dwdp.engine.fetch_costs import FetchCosts, RunStep
from vllm_dwdp.engine.graph_fence import GraphFence
from vllm_dwdp.engine.rank_memory import RankMemory
from vllm_dwdp.engine.routed_experts import DwdpRoutedExperts
from vllm_dwdp.fetch.bandwidth import Bandwidths
from vllm_dwdp.fetch.busy_log import BusyLog
from vllm_dwdp.fetch.choice import StepSizes, choose, report
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.layout import LayerLayout
from vllm_dwdp.memory.slots import LayerCopies, Slots

logger = init_logger("vllm.dwdp")


class Fetching:
    """The fetch side of one rank. Life: constructed, slots made, started, settled."""

    def __init__(
        self,
        config: DwdpConfig,
        layers: Sequence[DwdpRoutedExperts],
        layouts: Sequence[LayerLayout],
        *,
        rank: int,
        memory: RankMemory,
        sizes: StepSizes,
    ) -> None:
        self._config = config
        self._layers = layers
        self._layouts = layouts
        self._rank = rank
        self._sizes = sizes
        self._memory = memory
        self._copier = memory.make_copier(config)
        self._costs = FetchCosts(config, layers, layouts, rank=rank, memory=memory)
        self._scheduler: FetchScheduler | None = None
        self.slots: Slots | None = None
        self.bandwidths: Bandwidths | None = None
        self._num_peers = layouts[0][0].placement.dwdp_size
        self.counters = FetchCounters(len(layouts), self._num_peers)

    def make_slots(self, direct: Sequence[Sequence[View]]) -> Slots | None:
        """Slots if any step may need them; `direct` are all views of peers' memory."""
        self.bandwidths = links = self._costs.measure_links(self._copier, direct)
        if self._config.fetch == FetchMode.DIRECT:
            return None
        if links is None:
            logger.info("fetch=%s has nothing to fetch: this rank has all", self._config.fetch)
            return None
        if self._config.fetch == AUTO and self._needs_no_slots(links):
            return None
        self.slots = Slots(
            self._memory.slot_driver,
            self._layouts,
            rank=self._rank,
            num_slots=usable_slots(self._config.num_slots, len(self._layouts)),
            slice_bytes=self._config.slice_bytes or self._memory.slice_bytes,
        )
        return self.slots

    def start(self, direct: Sequence[Sequence[View]]) -> None:
        """Layers can run, in place, until `settle`; no request is served before."""
        copies: list[LayerCopies] = []
        if self.slots is not None:
            self._check_router_is_heard()
            chosen = self._memory.make_chosen(self._copier, self._num_peers)
            copies = [self.slots.copies(i, views, chosen) for i, views in enumerate(direct)]
        self._scheduler = FetchScheduler(
            copies,
            num_slots=self.slots.num_slots if self.slots else 0,
            copier=self._copier,
            policy=Policy.always(FetchMode.DIRECT),
            counters=self.counters,
            current_stream=self._memory.current_stream,
            make_waits=self._memory.make_waits,
        )
        install(self._layers, InPlace())

    def settle(self, run_step: RunStep) -> None:
        """Fix the policy, and run by it from now on."""
        assert self._scheduler is not None, "settled after it was started"
        if self.slots is not None:
            self._scheduler.policy = self._policy(run_step)
            self._warn_of_idle(self.slots)
            if FetchMode.PREFETCH in self._scheduler.policy.modes:
                self._scheduler.start()
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

    def _needs_no_slots(self, links: Bandwidths) -> bool:
        """As far as is known before any step has run; says why."""
        if links.reads_peers_as_own:
            logger.info(
                "fetch=auto: every step reads peers' memory where it lies, at %.1f GB/s, own "
                "memory at %.1f GB/s",
                links.peers / 1e9,
                links.own / 1e9,
            )
            return True
        if (model := self._costs.given()) is None:
            return False
        policy = choose(self._config, model, self._sizes)
        if policy.is_direct:
            report(self._config, policy, model, self._sizes)
        return policy.is_direct

    def _policy(self, run_step: RunStep) -> Policy:
        if self._config.fetch == FetchMode.SELECTIVE:
            captured = self._sizes.captured_tokens
            return Policy.always(FetchMode.SELECTIVE, captured_tokens=captured)
        model = self._costs.given() or self._costs.measured(run_step)
        policy = choose(self._config, model, self._sizes)
        report(self._config, policy, model, self._sizes)
        return policy

    def _warn_of_idle(self, slots: Slots) -> None:
        if self.policy.is_direct:
            logger.warning(
                "No step of this engine copies experts: %.1f MiB of slots lie idle. Set "
                "dwdp.fetch to 'direct' to have them for the KV cache.",
                slots.num_bytes / 2**20,
            )

    def _check_router_is_heard(self) -> None:
        for layer in self._layers:
            if layer.quant_method.is_monolithic and self._config.fetch == FetchMode.SELECTIVE:
                raise ConfigError(
                    f"{layer.layer_name}: dwdp.fetch='selective' needs the router's choice, the "
                    f"kernel of {type(layer.quant_method).__name__} keeps it to itself; set "
                    "dwdp.fetch to 'auto', 'direct' or 'prefetch'."
                )
