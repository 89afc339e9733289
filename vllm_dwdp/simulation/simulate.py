# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Simulations of a scenario: the prompts, the ranks, and what came of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import simpy

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.copier import Copier, GroupPlace, SliceCopier, SpreadCopier
from vllm_dwdp.simulation.costs import StepCosts
from vllm_dwdp.simulation.dep_group import DepGroup
from vllm_dwdp.simulation.dispatch import deliver
from vllm_dwdp.simulation.dwdp_rank import DwdpRank
from vllm_dwdp.simulation.links import Links
from vllm_dwdp.simulation.outcome import Outcome, RankOutcome
from vllm_dwdp.simulation.prompt_queue import PromptQueue
from vllm_dwdp.simulation.scenario import Scenario, Strategy
from vllm_dwdp.simulation.sections import Pulls
from vllm_dwdp.simulation.skew import RoutingSkew
from vllm_dwdp.simulation.slots import Slots
from vllm_dwdp.simulation.speeds import Pace
from vllm_dwdp.simulation.streams import Stream, generator


def simulate(
    scenario: Scenario, requests: Sequence[Request], costs: StepCosts | None = None
) -> Outcome:
    """Serve these prompts, which are in the order of their arrival, until the last one has ended.

    costs: what a step costs; default: as the scenario's section `costs` says.
    """
    costs = costs or scenario.step_costs()
    job = JOBS[scenario.strategy](scenario, costs)
    job.env.process(deliver(job.env, requests, job.queues, scenario.workload.dispatch))
    job.env.run()
    return job.outcome()


class _Job(ABC):
    """What jobs of both strategies have: a clock, and for each rank a queue, a speed, a start."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """What came of the job, once its clock has run to the end."""

    def __init__(self, scenario: Scenario, costs: StepCosts) -> None:
        self.env = simpy.Environment()
        self.scenario = scenario
        self.costs = costs
        self.queues = [self._queue() for _ in range(scenario.ranks)]
        starts = generator(scenario.seed, Stream.STARTS)
        self.starts_s: list[float] = starts.uniform(
            0, scenario.start_within_s, scenario.ranks
        ).tolist()

    def _queue(self) -> PromptQueue:
        scenario = self.scenario
        return PromptQueue(self.env, scenario.max_num_batched_tokens, scenario.chunked_prefill)

    def pace(self, rank: int) -> Pace:
        return Pace(
            self.scenario.speeds,
            rank=rank,
            num_layers=self.costs.num_layers,
            rng=generator(self.scenario.seed, Stream.PACE, rank),
        )


class DwdpJob(_Job):
    """Ranks of DWDP in groups that share experts."""

    def __init__(self, scenario: Scenario, costs: StepCosts) -> None:
        super().__init__(scenario, costs)
        self._links = Links(
            self.env,
            scenario.ranks,
            ingress=costs.ingress_bytes_per_s,
            egress=costs.egress_bytes_per_s,
        )
        self._ranks = [self._rank(rank) for rank in range(scenario.ranks)]
        for rank, start_s in zip(self._ranks, self.starts_s, strict=True):
            self.env.process(rank.run(start_s))

    def outcome(self) -> Outcome:
        return Outcome.of(
            Strategy.DWDP,
            [rank.tally for rank in self._ranks],
            [
                RankOutcome.of(i, rank.tally, rank.slots.bytes_fetched, rank.slots.copy_s)
                for i, rank in enumerate(self._ranks)
            ],
            self._links.rivals.shares(),
        )

    def _rank(self, rank: int) -> DwdpRank:
        slots = Slots(
            self.env,
            self._copier(rank),
            num_layers=self.costs.num_layers,
            num_slots=self.scenario.num_slots,
        )
        return DwdpRank(self.env, self.costs, self.queues[rank], slots, self.pace(rank))

    def _copier(self, rank: int) -> Copier:
        copies, costs, size = self.scenario.copies, self.costs, self.scenario.dwdp_ranks
        if copies.pulls is Pulls.SPREAD:
            return SpreadCopier(
                self.env,
                layer_bytes=costs.peer_bytes * (size - 1),
                bytes_per_s=min(costs.ingress_bytes_per_s, costs.egress_bytes_per_s),
            )
        return SliceCopier(
            self.env,
            self._links,
            GroupPlace(rank=rank % size, first=rank - rank % size, size=size),
            peer_bytes=costs.peer_bytes,
            slice_bytes=copies.slice_bytes,
            in_flight=copies.in_flight,
            order=copies.order,
            rng=generator(self.scenario.seed, Stream.SHUFFLES, rank),
        )


class DepJob(_Job):
    """Groups of expert parallelism."""

    def __init__(self, scenario: Scenario, costs: StepCosts) -> None:
        super().__init__(scenario, costs)
        size = scenario.dep_ranks
        self._groups = [self._group(first, size) for first in range(0, scenario.ranks, size)]
        for idx, group in enumerate(self._groups):
            starts_s = self.starts_s[idx * size : (idx + 1) * size]
            self.env.process(group.run(max(starts_s)))

    def outcome(self) -> Outcome:
        tallies = [tally for group in self._groups for tally in group.tallies]
        ranks = [RankOutcome.of(rank, tally) for rank, tally in enumerate(tallies)]
        return Outcome.of(Strategy.DEP, tallies, ranks)

    def _group(self, first: int, size: int) -> DepGroup:
        skew = RoutingSkew(
            self.scenario.routing_skew,
            num_ranks=size,
            num_layers=self.costs.num_layers,
            rng=generator(self.scenario.seed, Stream.SKEW, first),
        )
        ranks = range(first, first + size)
        queues = [self.queues[rank] for rank in ranks]
        return DepGroup(self.env, self.costs, queues, [self.pace(rank) for rank in ranks], skew)


JOBS: dict[Strategy, type[_Job]] = {Strategy.DWDP: DwdpJob, Strategy.DEP: DepJob}
