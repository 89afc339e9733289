# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Works out on which Ray node vLLM will place each rank, and why that can't work.

* vLLM places the engines, and leaves no hook for another order. So these functions follow its rule
  (`CoreEngineActorManager.create_dp_placement_groups`) on the same figures.
* Ranks fill the node of the data-parallel address first, and then the other nodes one by one.
* This module asks neither Ray nor the environment: callers pass in what they read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

STRATEGIES = ("strict", "fill")
STRATEGY_VARIABLE = "VLLM_RAY_DP_PACK_STRATEGY"
DOMAIN_LABEL = "nvidia.com/gpu.clique"
"""The label by which Kubernetes, too, says to which NVLink domain a node's GPUs belong."""


@dataclass(frozen=True)
class RayNode:
    """A live node of a Ray cluster.

    free: its free resources, such as {"CPU": 4.0}. domain: the NVLink domain that its label names;
    "" without a label. node_id: its id in Ray.
    """

    address: str
    name: str
    free: Mapping[str, float]
    domain: str = ""
    node_id: str = ""

    def __str__(self) -> str:
        kinds = [kind for kind in ("CPU", "GPU") if kind in self.free]
        free = ", ".join(f"{self.free[kind]:g} {kind}" for kind in kinds) or "nothing"
        label = f", NVLink domain {self.domain}" if self.domain else ""
        return f"{self.address} ({self.name}{label}): {free}"


@dataclass(frozen=True)
class RayJob:
    """What vLLM and dwdp are asked to place.

    size_local: the ranks on the node of `address`; with 'strict' also those on every other node.
    device: the resource that vLLM asks Ray for, one for each engine. shares_host_memory: whether
    the ranks of a group must be on one node even if an NVLink domain has several.
    """

    size: int
    size_local: int
    dwdp_size: int
    address: str
    strategy: str
    device: str
    shares_host_memory: bool

    @property
    def engine(self) -> Mapping[str, float]:
        """The resources that vLLM asks for each engine: one device, and one CPU for its core."""
        return needs_of_engine(self.device)


def needs_of_engine(device: str) -> Mapping[str, float]:
    """One device for the worker, and one logical CPU for the engine's core."""
    return {"CPU": 2.0} if device == "CPU" else {device: 1.0, "CPU": 1.0}


def nodes_of_ranks(nodes: Sequence[RayNode], job: RayJob) -> list[RayNode]:
    """The node of each rank in turn; fewer than the job's ranks if the cluster has too few."""
    placed: list[RayNode] = []
    for node in sorted(nodes, key=lambda node: node.address != job.address):
        room = int(node.free.get(job.device, 0))
        is_first = node.address == job.address
        if is_first and room < job.size_local:
            return []  # vLLM places nothing without its own ranks on this node
        if room < job.size_local and job.strategy == "strict":
            continue
        takes_local = is_first or job.strategy == "strict"
        placed += [node] * (job.size_local if takes_local else room)
    return placed[: job.size]


def ranks_of_nodes(placed: Sequence[RayNode]) -> tuple[int, ...]:
    """How many ranks each node has, in the order of the ranks."""
    return tuple(len(list(ranks)) for _, ranks in groupby(placed, lambda node: node.address))


def reason_spread(strategy: str) -> str | None:
    """Why vLLM's strategy would tear a rank apart, or None."""
    if strategy in STRATEGIES:
        return None
    return (
        f"a dwdp rank is one worker on one node, got {STRATEGY_VARIABLE}={strategy}, which spreads "
        "each engine over nodes; set it to strict or fill."
    )


def reason_unplaceable(nodes: Sequence[RayNode], job: RayJob) -> str | None:
    """Why vLLM can't place this job so that every group lies in one memory domain, or None."""
    free = f"free are {'; '.join(map(str, nodes))}"
    if all(node.address != job.address for node in nodes):
        return (
            f"expected a Ray node at the data-parallel address {job.address}, {free}; set "
            "--data-parallel-address to the address of this host's node."
        )
    placed = nodes_of_ranks(nodes, job)
    if reason := _reason_too_small(placed, job):
        return f"{reason}, {free}; {_advice(job)}"
    return _reason_split(placed, job, free)


def _reason_too_small(placed: Sequence[RayNode], job: RayJob) -> str | None:
    """Why some engines would wait for resources forever; vLLM doesn't count their cores' CPUs."""
    needs = " and ".join(f"{number:g} {kind}" for kind, number in job.engine.items())
    expected = f"expected Ray nodes with room for {job.size} engines of {needs} each"
    if len(placed) < job.size:
        return f"{expected}, vLLM finds room for {len(placed)} by {_strategy_text(job)}"
    first = 0
    for number in ranks_of_nodes(placed):
        node = placed[first]
        if any(node.free.get(kind, 0) < number * each for kind, each in job.engine.items()):
            strategy = _strategy_text(job)
            return f"{expected}, vLLM would place {number} on {node.address} by {strategy}"
        first += number
    return None


def _reason_split(placed: Sequence[RayNode], job: RayJob, free: str) -> str | None:
    for first in range(0, job.size, job.dwdp_size):
        group = placed[first : first + job.dwdp_size]
        addresses = sorted({node.address for node in group})
        if len(addresses) == 1 or _is_one_domain(group, job):
            continue
        domain = "" if job.shares_host_memory else f", or nodes with one label {DOMAIN_LABEL}"
        return (
            f"expected each group of {job.dwdp_size} dwdp ranks on one Ray node{domain}, by "
            f"{_strategy_text(job)} vLLM would place ranks {first} to "
            f"{first + job.dwdp_size - 1} on {' and '.join(addresses)}, {free}; {_advice(job)}"
        )
    return None


def _is_one_domain(group: Sequence[RayNode], job: RayJob) -> bool:
    domains = {node.domain for node in group}
    return not job.shares_host_memory and len(domains) == 1 and "" not in domains


def _strategy_text(job: RayJob) -> str:
    return f"{STRATEGY_VARIABLE}={job.strategy} and --data-parallel-size-local {job.size_local}"


def _advice(job: RayJob) -> str:
    return (
        f"set --data-parallel-size-local to a multiple of dwdp_size ({job.dwdp_size}) for which "
        "every node has room, or start nodes with more."
    )
