# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What an engine answers when its front-end asks for the metrics of its rank."""

from typing import Any

from vllm.v1.engine.core import EngineCore

from vllm_dwdp.engine.metrics.series import METHOD, PENDING, Values, values_of
from vllm_dwdp.engine.setup.settings import user_config


def add_report() -> None:
    """Let front-ends call METHOD of vLLM's EngineCore in this process."""
    setattr(EngineCore, METHOD, report)


def report(engine: Any) -> dict[str, Values]:
    """The values of all series. The worker answers after the step that it runs."""
    (stats,) = engine.model_executor.collective_rpc("dwdp_stats")
    stats[PENDING] = pending_prefill_tokens(engine.scheduler)
    return values_of(stats, by_layer=user_config(engine.vllm_config).layer_metrics)


def pending_prefill_tokens(scheduler: Any) -> int:
    """Prompt tokens of all requests that the scheduler knows, less those that are computed."""
    return sum(
        max(0, request.num_prompt_tokens - request.num_computed_tokens)
        for request in list(scheduler.requests.values())
    )
