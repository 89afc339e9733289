# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Refuses a configuration that can't work, before a process is spawned or a weight is read.

Each check looks at one thing and returns the sentence that refuses it, or None.
"""

from collections.abc import Callable
from typing import Any

from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.engine.setup import format_checks, job_checks, model_checks
from vllm_dwdp.engine.setup.cpu_checks import check_cpu
from vllm_dwdp.engine.setup.ray_placement import ray_nodes

Check = Callable[[Any, DwdpConfig], str | None]
CHECKS: tuple[Check, ...] = (
    model_checks.platform,
    model_checks.expert_parallel,
    model_checks.inner_parallel,
    model_checks.moe_model,
    format_checks.model_class,
    format_checks.expert_format,
    job_checks.group_size,
    model_checks.host_experts,
    job_checks.ranks,
    job_checks.headless,
    job_checks.hosts_of_a_rank,
    job_checks.forms_of_ray,
    job_checks.hosts_of_host_memory,
    job_checks.rendezvous,
    job_checks.secret,
    job_checks.in_process,
    model_checks.writers,
    model_checks.load_format,
    model_checks.num_slots,
    check_cpu,
    job_checks.environment,
    model_checks.map_budget,
    ray_nodes,
)
"""All checks, in the order in which they run: the first reason counts."""


def check_config(vllm_config: Any, config: DwdpConfig) -> None:
    """Raise ConfigError with the first reason why this configuration can't work."""
    for check in CHECKS:
        if reason := check(vllm_config, config):
            raise ConfigError(reason)
