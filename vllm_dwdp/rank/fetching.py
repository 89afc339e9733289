# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How a rank fetches: its copier, its policy, and its slots if the policy uses any.

* The policy is chosen before slots are made and before vLLM profiles memory, and never changes. So
  slots are made only if some step will use them.
* The policy rests on the slowest figures of the whole group, so all ranks choose alike.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from vllm_dwdp.config import AUTO, DwdpConfig, FetchMode
from vllm_dwdp.device.bandwidth import Bandwidths
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.fetch.base import InPlace
from vllm_dwdp.fetch.busy_log import BusyLog
from vllm_dwdp.fetch.choice import StepSizes, policy_for, report, warn_of_captured
from vllm_dwdp.fetch.copy_watch import CopiedSlice, CopyWatch
from vllm_dwdp.fetch.cost_model import CostModel
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.group.session import Gather
from vllm_dwdp.memory.slots import LayerCopies, Slots
from vllm_dwdp.rank.experts import RankExperts
from vllm_dwdp.rank.fetch_costs import FetchCosts, RunStep
from vllm_dwdp.rank.model_layers import ModelLayers
from vllm_dwdp.rank.tracing import Tracing

logger = logging.getLogger("vllm.dwdp")


class Fetching:
    """The fetch side of one rank: `decide`, then `make_slots`, `start`, `settle`, and `stop`."""

    def __init__(
        self,
        config: DwdpConfig,
        layers: ModelLayers,
        experts: RankExperts,
        *,
        memory: RankMemory,
        sizes: StepSizes,
        gather: Gather,
        job_ranks: Sequence[int],
        on_step: Callable[[str], None] = lambda detail: None,
        has_room: bool = True,
        end_rank: Callable[[], None],
    ) -> None:
        """job_ranks: the group's ranks by their numbers in the job.

        on_step: called with a description of each step that is timed. has_room: whether all ranks
        of the group have memory for slots. end_rank: ends this process at once; called when a copy
        doesn't end.
        """
        self._config = config
        self._layers = layers
        self._experts = experts
        layout = self._layout = experts.layout
        self._end_rank = end_rank
        self._sizes = sizes
        self._has_room = has_room
        self._memory = memory
        self._copier = memory.make_copier(config)
        self._costs = FetchCosts(
            config,
            layers,
            experts,
            memory=memory,
            copier=self._copier,
            gather=gather,
            on_step=on_step,
        )
        self._scheduler: FetchScheduler | None = None
        self._job_ranks = job_ranks
        self._copies: list[LayerCopies[Any]] = []
        self.policy = Policy.always(FetchMode.DIRECT)
        self.break_even_tokens: int | None = None
        """Tokens of the smallest step that hides a prefetch; None if no step prefetches."""
        self.bandwidths: Bandwidths | None = None
        self.tracing: Tracing | None = None
        """Records steps, from `settle` on."""
        self.counters = FetchCounters(layout.num_layers, layout.num_ranks)

    def decide(self, run_step: RunStep) -> None:
        """Choose the policy, together with all ranks of the group.

        Called when layers are bound to the direct views. Raises ConfigError if a layer's kernel
        keeps the router's choice from a policy that needs it.
        """
        self.bandwidths = self._costs.measure_links()
        if self._costs.links is not None:
            logger.info("%s", self._costs.links.describe())
        is_needed = self._needs_compute(self.bandwidths)
        layer = self._costs.measure_layer(run_step, is_needed=is_needed)
        model = None
        if is_needed:
            assert self.bandwidths is not None and layer is not None, "this rank has given both"
            model = self._costs.model(self.bandwidths, layer)
        self._choose(model)
        if FetchMode.SELECTIVE in self.policy.modes:
            self._layers.check_router_is_heard()

    def make_slots(self) -> Slots | None:
        """Make the slots, if a step will use them; None otherwise."""
        if not self.policy.is_direct:
            peer_bytes = self._costs.missing_bytes // max(1, self._layout.num_ranks - 1)
            slice_bytes = self._config.slice_bytes or self._memory.slice_bytes(peer_bytes)
            self._experts.make_slots(self._layout.num_slots, slice_bytes=slice_bytes)
        return self._experts.slots

    def start(self) -> None:
        """Let layers run in place, until `settle` is called. No request is served before that."""
        if (slots := self._experts.slots) is not None:
            chosen = None
            if FetchMode.SELECTIVE in self.policy.modes_up_to(self._sizes.max_tokens):
                chosen = self._memory.make_chosen(self._copier, self._layout.num_ranks)
            self._copies = self._experts.copies(chosen)
        self._scheduler = FetchScheduler(
            self._copies,
            num_slots=slots.num_slots if slots else 0,
            copier=self._copier,
            policy=self.policy,
            counters=self.counters,
            current_stream=self._memory.current_stream,
            make_waits=self._memory.make_waits,
        )
        self._layers.install(InPlace())

    def settle(self) -> None:
        """Let layers fetch by the policy from now on."""
        assert self._scheduler is not None, "settled after it was started"
        if FetchMode.PREFETCH in self.policy.modes:
            self._scheduler.start()
        self._layers.fence_graphs(self._scheduler)
        self._layers.install(self._scheduler)
        self.tracing = Tracing(
            self._scheduler,
            self._copier,
            num_layers=self._layout.num_layers,
            install=self._layers.install,
            counts=self._fetched,
        )
        BusyLog(self.counters).start()
        if self._copies:
            self._watch_copies()

    def stop(self) -> None:
        """Stop the copies; none is under way when this returns."""
        if self._scheduler is not None:
            self._scheduler.stop()

    def counts(self) -> dict[str, Any]:
        """All counters of this rank, with those that a GPU's kernels keep, and link speeds."""
        counts = self._fetched()
        if (links := self._costs.links) is not None:
            counts["link_gb_per_s"] = links.gb_per_s(self._layout.num_ranks)
        return counts

    def _fetched(self) -> dict[str, Any]:
        counts = self.counters.snapshot()
        if gathered := self._memory.gathered():
            num_copies, num_hits, *by_peer = gathered
            counts["bytes_fetched"][FetchMode.SELECTIVE.value] = by_peer
            counts["copies"] += num_copies
            counts["selective_hits"] += num_hits
        return counts

    def _watch_copies(self) -> None:
        layers = [[CopiedSlice(*one) for one in copies.slices] for copies in self._copies]
        CopyWatch(
            self._copier,
            layers,
            rank=self._layout.rank,
            job_ranks=self._job_ranks,
            end_rank=self._end_rank,
        ).start()

    def _needs_compute(self, bandwidths: Bandwidths | None) -> bool:
        """Whether the policy, or the report on it, depends on how long layers compute."""
        if bandwidths is None or self._costs.lacks_nothing:
            return False
        if self._config.fetch == AUTO:
            return self._has_room and not self._reads_peers_as_own(bandwidths)
        return self._config.fetch == FetchMode.PREFETCH

    def _reads_peers_as_own(self, bandwidths: Bandwidths) -> bool:
        """Whether copies save no time. A busy machine can make one memory look like two."""
        is_measured = self._config.link_gb_per_s is None
        return (self._memory.is_shared_by_all and is_measured) or bandwidths.reads_peers_as_own

    def _choose(self, model: CostModel | None) -> None:
        config, sizes = self._config, self._sizes
        if self._costs.lacks_nothing:
            logger.info("fetch=%s has nothing to fetch: this rank has all experts", config.fetch)
            return
        hears_router = self._layers.hears_router
        self.policy = policy_for(config.fetch, model, sizes, hears_router=hears_router)
        if config.fetch == AUTO and model is not None and not hears_router:
            logger.info("fetch=auto: no step is selective, since kernels hide the router's choice")
        warn_of_captured(self.policy, config, sizes)
        if model is not None and FetchMode.PREFETCH in self.policy.modes:
            self.break_even_tokens = model.break_even_tokens
        if model is not None:
            report(config, self.policy, model, sizes)
        elif config.fetch == AUTO and self.bandwidths is not None:
            logger.info(
                "fetch=auto: every step reads the experts it lacks where they are, at %.1f GB/s; "
                "it reads own memory at %.1f GB/s",
                self.bandwidths.peers / 1e9,
                self.bandwidths.own / 1e9,
            )
