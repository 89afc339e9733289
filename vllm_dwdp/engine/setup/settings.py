# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The settings that `configure` resolved; `additional_config` carries them to every process.

`additional_config` is part of vLLM's compile-cache key, so settings contain no port and nothing
random. Ports are read from the parallel config, where vLLM keeps them.
"""

import dataclasses
import multiprocessing
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm_dwdp.config import CONFIG_KEY, DwdpConfig, parse_endpoint
from vllm_dwdp.group.meet.store import Endpoint

RESOLVED_KEY = "dwdp_resolved"
LOOPBACK = "127.0.0.1"
NODES_VARIABLE = "DWDP_RANKS_OF_NODES"
"""Set by vllm_dwdp.LLM beside VLLM_DP_*: how many ranks each Ray node has, such as "2,2"."""
SUPERVISED = "APIServer_DPRank_"
"""How vLLM's supervisor (`--data-parallel-multi-port-external-lb`) names its servers."""
HEADLESS = "run_headless"
"""The function of vLLM's command that `--headless` leads to."""


class NodePlace(NamedTuple):
    """A rank's place on its host. Without Ray, all ranks of a job count as ranks of one host.

    rank: the rank's number among the `num_ranks` ranks of the host. command: the numbers of those
    that share the environment of this rank's command.
    """

    rank: int
    num_ranks: int
    command: range


@dataclass(frozen=True)
class Settings:
    """The job as this process sees it.

    job_rank: this rank's number in the job; None where vLLM numbers the engines itself. is_spread:
    several `vllm serve` commands start the ranks. local_rank: this rank's number among the job's
    ranks on this host, if `VLLM_DP_*` gave it; else None. is_external: the user balances the load
    between servers of one rank each. command_ranks: the first rank and the number of ranks that
    share this command's environment; None for all ranks of the job. ranks_of_nodes: how many
    ranks each Ray node has, in the order of the ranks; empty without Ray.
    """

    job_size: int
    dwdp_size: int
    job_rank: int | None
    is_spread: bool
    local_rank: int | None = None
    is_external: bool = False
    command_ranks: tuple[int, int] | None = None
    ranks_of_nodes: tuple[int, ...] = ()

    @property
    def is_on_several_nodes(self) -> bool:
        """Whether Ray places the ranks on more than one node."""
        return len(self.ranks_of_nodes) > 1

    @property
    def is_one_command(self) -> bool:
        """Whether one front-end starts all ranks, so that they share more than an address."""
        return not self.is_spread and self.local_rank is None

    @property
    def command(self) -> range:
        """The ranks of the job that this command's environment is about, see `command_ranks`.

        These are all ranks of the job with `VLLM_DP_*` or vLLM's supervisor, where each process
        starts one.
        """
        first, number = self.command_ranks or (0, self.job_size)
        return range(first, first + number)

    def store_ranks(self, job_rank: int) -> range:
        """The ranks that meet at the same store as this one.

        vllm_dwdp.LLM has the ranks of each Ray node meet on that node. So they need no port that
        other nodes reach, and the end of another node concerns none of them.
        """
        if not self.is_on_several_nodes or self.local_rank is None:
            return range(self.job_size)
        rank, num_ranks, _ = self.on_node(job_rank)
        return range(job_rank - rank, job_rank - rank + num_ranks)

    def on_node(self, job_rank: int) -> NodePlace:
        """A rank's place among the ranks that divide the cores and the memory of its host."""
        everywhere = NodePlace(job_rank, self.job_size, self.command)
        return _place(job_rank, self.ranks_of_nodes) or everywhere

    def store(self, vllm_config: Any) -> None:
        vllm_config.additional_config[RESOLVED_KEY] = dataclasses.asdict(self)

    @classmethod
    def load(cls, vllm_config: Any) -> "Settings | None":
        """The settings in a config; None if `configure` has not run yet."""
        stored = (vllm_config.additional_config or {}).get(RESOLVED_KEY)
        return cls(**stored) if stored else None


def user_config(vllm_config: Any) -> DwdpConfig:
    return DwdpConfig.parse((vllm_config.additional_config or {}).get(CONFIG_KEY))


def job_rank(vllm_config: Any, settings: Settings) -> int:
    """This engine's data-parallel rank, in the engine's own processes."""
    if settings.job_rank is not None:
        return settings.job_rank
    return int(vllm_config.parallel_config.data_parallel_index)


def is_offline(parallel_config: Any) -> bool:
    """Whether `VLLM_DP_*` variables describe this rank: one `vllm.LLM` per process."""
    return parallel_config.data_parallel_rank_local is not None


def given_ranks_of_nodes() -> tuple[int, ...]:
    """How many ranks each node has, if the LLM that placed this rank has said so; else empty."""
    return tuple(map(int, filter(None, os.environ.get(NODES_VARIABLE, "").split(","))))


def num_ranks_beside(parallel_config: Any) -> int:
    """How many ranks of the job divide this host, as far as this rank of an offline job knows."""
    of_nodes = given_ranks_of_nodes() if is_offline(parallel_config) else ()
    place = _place(parallel_config.data_parallel_rank, of_nodes)
    return place.num_ranks if place else int(parallel_config.data_parallel_size)


def _place(job_rank: int, ranks_of_nodes: Sequence[int]) -> NodePlace | None:
    """A rank's place on its Ray node; None without Ray."""
    first = 0
    for number in ranks_of_nodes:
        if job_rank < first + number:
            return NodePlace(job_rank - first, number, range(number))
        first += number
    return None


def is_spread(parallel_config: Any) -> bool:
    """Whether several `vllm serve` commands start the job's ranks, on this host or on several.

    With Ray, one command starts ranks on all nodes.
    """
    return (
        not is_offline(parallel_config)
        and parallel_config.data_parallel_backend != "ray"
        and parallel_config.data_parallel_size_local < parallel_config.data_parallel_size
    )


def is_headless() -> bool:
    """Whether `vllm serve --headless` is reading its options; no field of the config says so."""
    return any(frame.f_code.co_name == HEADLESS for frame, _ in traceback.walk_stack(None))


def has_peers_of_other_commands(parallel_config: Any) -> bool:
    """Whether ranks of the job may be on other hosts, as far as this command knows."""
    return is_spread(parallel_config) or is_offline(parallel_config)


def command_ranks(parallel_config: Any) -> tuple[int, int] | None:
    """Settings.command_ranks, from vLLM's options, before `collapse_data_parallel` changes them.

    Servers that vLLM's supervisor started share one environment, which is about all ranks.
    """
    is_supervised = multiprocessing.current_process().name.startswith(SUPERVISED)
    if is_offline(parallel_config) or is_supervised:
        return None
    return parallel_config.data_parallel_rank, parallel_config.data_parallel_size_local


def endpoint(vllm_config: Any, settings: Settings, *, one_host: bool) -> Endpoint:
    """The address of the group's store: on loopback, unless ranks may be on several hosts.

    Ranks that one command started agree on a port as they start (see engine/worker/meeting.py).
    Under `vllm serve` with Ray they take the config's `data_parallel_master_port` instead, on
    several nodes at the data-parallel address, since one store serves the groups of all nodes.
    Ranks of several commands use what the user gave all of them: `--data-parallel-address` and the
    port after `--data-parallel-rpc-port`, or `VLLM_DP_MASTER_IP` and `VLLM_DP_MASTER_PORT`. Ranks
    of vllm_dwdp.LLM get those, too; on several Ray nodes they name each node's own loopback.
    """
    if given := user_config(vllm_config).rendezvous:
        return Endpoint(*parse_endpoint(given))
    parallel = vllm_config.parallel_config
    is_local = (one_host or settings.is_one_command) and not settings.is_on_several_nodes
    host = LOOPBACK if is_local else parallel.data_parallel_master_ip
    if settings.is_spread:
        return Endpoint(host, parallel.data_parallel_rpc_port + 1)
    return Endpoint(host, parallel.data_parallel_master_port)
