# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Chooses the policy of a rank's steps by what they cost; `report` says why."""

import logging
from typing import NamedTuple

from vllm_dwdp.config import AUTO, DwdpConfig, FetchMode
from vllm_dwdp.fetch.cost_model import CostModel
from vllm_dwdp.fetch.policy import Policy

logger = logging.getLogger("vllm.dwdp")


class StepSizes(NamedTuple):
    """Padded tokens of the largest step, and of the largest step that a graph may capture."""

    max_tokens: int
    captured_tokens: int


def policy_for(
    fetch: str, model: CostModel | None, sizes: StepSizes, *, hears_router: bool
) -> Policy:
    """The policy of a rank's steps, by the option `fetch`.

    model: None if copies can't save any time. hears_router: see Policy.cheapest. If only steps of
    more than `sizes.max_tokens` would copy, the policy is 'direct' for all.
    """
    captured = sizes.captured_tokens
    if fetch != AUTO:
        policy = Policy.always(FetchMode(fetch), captured_tokens=captured)
    elif model is not None:
        policy = Policy.cheapest(model, **sizes._asdict(), hears_router=hears_router)
    else:
        policy = Policy.always(FetchMode.DIRECT)
    if policy.modes_up_to(sizes.max_tokens) == {FetchMode.DIRECT}:
        return Policy.always(FetchMode.DIRECT, captured_tokens=captured)
    return policy


def report(config: DwdpConfig, policy: Policy, model: CostModel, sizes: StepSizes) -> None:
    """Log the thresholds with the figures, and warn if no step is large enough to hide a copy."""
    logger.info(
        "fetch=%s, by tokens in a step: %s; %s", config.fetch, policy.table(), model.describe()
    )
    if (needed := model.break_even_tokens) > sizes.max_tokens:
        logger.warning(
            "The largest step of this engine has %d tokens, too few to hide a prefetch: it takes "
            "%d (%s). Raise --max-num-batched-tokens%s.",
            sizes.max_tokens,
            needed,
            model.describe(),
            "" if config.fetch == AUTO else ", or set dwdp.fetch to 'direct'",
        )


def warn_of_captured(policy: Policy, config: DwdpConfig, sizes: StepSizes) -> None:
    """Warn if the user asked for 'prefetch' and no step will prefetch."""
    if policy.is_direct and config.fetch == FetchMode.PREFETCH:
        logger.warning(
            "dwdp.fetch is 'prefetch', but no step of this engine prefetches: the largest has %d "
            "tokens, and vLLM captures steps of up to %d in graphs, which read in place. No slots "
            "are made. Raise --max-num-batched-tokens, or lower --max-cudagraph-capture-size.",
            sizes.max_tokens,
            sizes.captured_tokens,
        )
