# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Starts the ranks of an offline job on the nodes of a Ray cluster, whole groups on every node.

* Each rank is a process, as without Ray. An actor on its node starts it, and passes its messages.
* The ranks of a node meet on that node, so nodes need no ports or secrets between them, and the end
  of a node concerns no rank elsewhere.
"""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from vllm.logger import init_logger

from vllm_dwdp.engine.setup.ray_cluster import (
    KEEP_GPUS,
    device_of_engine,
    live_nodes,
    once_settled,
    place_engines_by_ray,
    rank_variables,
)
from vllm_dwdp.engine.setup.ray_nodes import RayNode, needs_of_engine
from vllm_dwdp.engine.setup.settings import NODES_VARIABLE
from vllm_dwdp.offline.errors import RankDied
from vllm_dwdp.offline.local_ranks import rank_environment
from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.ray_actor import RankActor
from vllm_dwdp.offline.ray_groups import nodes_with_groups
from vllm_dwdp.offline.ray_rank import RayRank

logger = init_logger("vllm.dwdp")

THREADS_OF_ACTOR = 8
ACTOR_START_S = 120.0


class RayRanks:
    """All ranks of a job on the nodes of a cluster. group_size: ranks that share experts."""

    def __init__(self, job_size: int, group_size: int, options: PickledOptions) -> None:
        self._job_size = job_size
        self._group_size = group_size
        self._options = options

    @contextlib.contextmanager
    def starting(self) -> Iterator[Iterator[RayRank]]:
        """Yields the ranks, which start as they are taken.

        Raises ValueError if the nodes have too little free or this one has no device,
        ConnectionError without a cluster, and RankDied if an actor doesn't start.
        """
        _connect()
        place_engines_by_ray()
        needs = _needs()
        placed = once_settled(lambda: self._placed(needs))
        actors = deque(_actors([node for node, number in placed for _ in range(number)], needs))
        try:
            yield self._started(placed, actors)
        finally:
            _end(actors)

    def _placed(self, needs: Mapping[str, float]) -> list[tuple[RayNode, int]]:
        return nodes_with_groups(
            _nodes(), job_size=self._job_size, group_size=self._group_size, needs=needs
        )

    def _started(
        self, placed: Sequence[tuple[RayNode, int]], actors: deque[Any]
    ) -> Iterator[RayRank]:
        """Yields the ranks in turn. Whoever takes one ends it; its actor is no longer in `actors`.

        placed: how many ranks each node has. actors: those of all ranks.
        """
        of_nodes = ",".join(str(number) for _, number in placed) if len(placed) > 1 else ""
        rank = 0
        for node, number in placed:
            here = list(islice(actors, number))
            port = _answer(here[0].reserve_port.remote(), node)
            shared = {**rank_variables(), NODES_VARIABLE: of_nodes, **_visible_gpus(here, node)}
            for local_rank, actor in enumerate(here):
                place = rank_environment(rank, local_rank, self._job_size, port)
                _answer(actor.start.remote(rank, shared | place, self._options), node)
                logger.info("dwdp rank %d starts on Ray node %s.", rank, node.address)
                actors.popleft()
                yield RayRank(actor, node.address)
                rank += 1


def _connect() -> None:
    """Connect to the cluster that the environment names or that runs here, unless connected."""
    import ray

    try:
        ray.init(address="auto", ignore_reinit_error=True)
    except ConnectionError as error:
        raise ConnectionError(
            "vllm_dwdp.LLM expected a Ray cluster for data_parallel_backend='ray', found none; "
            "start one (ray start --head), name it in RAY_ADDRESS, or call ray.init before."
        ) from error


def _nodes() -> list[RayNode]:
    """The nodes that vLLM may use, this process's own first if it is one of them."""
    import ray

    address = ray.util.get_node_ip_address()
    return sorted(live_nodes(None), key=lambda node: node.address != address)


def _needs() -> Mapping[str, float]:
    """The resources of one rank. Raises ValueError if vLLM finds no device on this node."""
    if device := device_of_engine():
        return needs_of_engine(device)
    raise ValueError(
        "expected a GPU on the node of this program, from which vLLM learns what its ranks run "
        "on, vLLM finds no device; run the program on a Ray node with GPUs."
    )


def _actors(nodes: Sequence[RayNode], needs: Mapping[str, float]) -> list[Any]:
    """An actor for each rank on the rank's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor_class = ray.remote(RankActor)
    return [
        actor_class.options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            max_concurrency=THREADS_OF_ACTOR,
            max_restarts=0,
            runtime_env={"env_vars": {KEEP_GPUS: "1"}},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        ).remote()
        for node in nodes
    ]


def _end(actors: Iterable[Any]) -> None:
    """End the actors of ranks that nobody has taken, because an earlier one didn't start."""
    import ray

    for actor in actors:
        ray.kill(actor)


def _visible_gpus(actors: Sequence[Any], node: RayNode) -> dict[str, str]:
    """The variable by which the ranks of a node see each other's GPUs, but none of other jobs.

    Rank k of the node takes the k-th of them.
    """
    gpus = [gpu for actor in actors for gpu in _answer(actor.gpus.remote(), node)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}


def _answer(call: Any, node: RayNode) -> Any:
    """What an actor that is starting answers. Raises RankDied if it doesn't."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return ray.get(call, timeout=ACTOR_START_S)
    except GetTimeoutError:
        raise RankDied(
            f"expected Ray to start a rank on node {node.address} within {ACTOR_START_S:g} s; what "
            "it has free may have changed, see `ray status`."
        ) from None
    except RayError as error:
        raise RankDied(f"Ray node {node.address} could not start a rank: {error}") from error
