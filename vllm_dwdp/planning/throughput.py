# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Prompt tokens per second and rank, with DWDP and with what competes with it."""

from dataclasses import dataclass

from vllm_dwdp.planning.dwdp_step import dwdp_step
from vllm_dwdp.planning.implementation import Implementation
from vllm_dwdp.planning.job import ENDLESS, Job
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.other_steps import (
    expert_parallel_step,
    replica_step,
    tensor_parallel_step,
)
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.spread import Spread
from vllm_dwdp.planning.workload import Workload


@dataclass(frozen=True)
class Throughput:
    """Prompt tokens per second and rank, by deployment.

    replicas: as if all experts fitted into a rank's memory.
    """

    dwdp: float
    expert_parallel: float
    tensor_parallel: float
    replicas: float

    @property
    def dep_over_dwdp(self) -> float:
        """Time per token with expert parallelism over that with DWDP; above 1, DWDP is faster.

        Also the gain in time to first token of a prompt that goes into the next step, since both
        take as long as a step.
        """
        return self.dwdp / self.expert_parallel


def throughput(
    model: MoeModel,
    rates: Rates,
    work: Workload,
    spread: Spread,
    how: Implementation,
    *,
    job: Job = ENDLESS,
) -> Throughput:
    """Tokens per second from the job's first prompt to its last.

    Expert and tensor parallelism wait for the slowest rank in every layer. Replicas have their
    share of the prompts assigned beforehand, so the last one ends late.
    """
    ranks, slowest = spread.num_ranks, job.slowest
    dwdp = dwdp_step(model, rates, work, spread, how)
    expert_parallel = expert_parallel_step(model, rates, work, ranks) / slowest
    return Throughput(
        dwdp=work.tokens / dwdp * job.mean_speed(ranks),
        expert_parallel=work.tokens / expert_parallel,
        tensor_parallel=work.tokens
        / tensor_parallel_step(model, rates, work, ranks)
        * slowest
        / ranks,
        replicas=work.tokens / replica_step(model, rates, work) * slowest,
    )
