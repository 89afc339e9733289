# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Starts the ranks of an offline job on the nodes of a Ray cluster, whole groups on every node.

* Each rank is a process, as without Ray. An actor on its node starts it, and passes its messages.
* The ranks of a node meet on that node, so nodes need no ports or secrets between them, and the end
  of a node concerns no rank elsewhere.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from vllm.logger import init_logger

from vllm_dwdp.engine.setup.ray_nodes import RayNode, needs_of_engine
from vllm_dwdp.engine.setup.ray_placement import (
    SETTLE_S,
    actor_environment,
    device_of_engine,
    live_nodes,
)
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

        Raises ValueError if the nodes have too little free, ConnectionError without a cluster, and
        RankDied if an actor doesn't start.
        """
        _connect()
        placed = self._placed()
        actors = _actors([node for node, number in placed for _ in range(number)])
        yield self._started(placed, actors)

    def _placed(self) -> list[tuple[RayNode, int]]:
        """Where the ranks go. Ray may need some seconds to free what an earlier job had."""
        needs = needs_of_engine(device_of_engine())
        deadline = time.monotonic() + SETTLE_S
        while True:
            try:
                return nodes_with_groups(
                    _nodes(), job_size=self._job_size, group_size=self._group_size, needs=needs
                )
            except ValueError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def _started(
        self, placed: Sequence[tuple[RayNode, int]], actors: Iterable[Any]
    ) -> Iterator[RayRank]:
        of_nodes = ",".join(str(number) for _, number in placed) if len(placed) > 1 else ""
        rank, left = 0, iter(actors)
        for node, number in placed:
            here = list(islice(left, number))
            port = _answer(here[0].reserve_port.remote(), node)
            shared = {NODES_VARIABLE: of_nodes, **_visible_gpus(here, node)}
            for local_rank, actor in enumerate(here):
                place = rank_environment(rank, local_rank, self._job_size, port)
                _answer(actor.start.remote(rank, shared | place, self._options), node)
                logger.info("dwdp rank %d starts on Ray node %s.", rank, node.address)
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
    """The nodes that vLLM may use, this process's own first."""
    import ray

    address = ray.util.get_node_ip_address()
    return sorted(live_nodes(address), key=lambda node: node.address != address)


def _actors(nodes: Sequence[RayNode]) -> list[Any]:
    """An actor for each rank on the rank's node. Ray ends them when nobody refers to them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    device, environment = device_of_engine(), actor_environment()
    actor_class = ray.remote(RankActor)
    return [
        actor_class.options(
            num_cpus=needs_of_engine(device)["CPU"],
            num_gpus=int(device == "GPU"),
            max_concurrency=THREADS_OF_ACTOR,
            max_restarts=0,
            runtime_env={"env_vars": environment},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        ).remote()
        for node in nodes
    ]


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
