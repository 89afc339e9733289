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
    """In padded tokens: the largest step, and the largest that may be captured in a graph."""

    max_tokens: int
    captured_tokens: int


def choose(config: DwdpConfig, model: CostModel, sizes: StepSizes) -> Policy:
    """For `fetch=auto` and `fetch=prefetch`."""
    if config.fetch == FetchMode.PREFETCH:
        return Policy.always(FetchMode.PREFETCH, captured_tokens=sizes.captured_tokens)
    return Policy.cheapest(model, **sizes._asdict())


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
