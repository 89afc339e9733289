# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Chooses the policy of a rank's steps by what they cost, and says so in the log."""

import logging

from vllm_dwdp.config import DwdpConfig, FetchMode
from vllm_dwdp.fetch.cost_model import CostModel
from vllm_dwdp.fetch.policy import Policy

logger = logging.getLogger("vllm.dwdp")


def choose(
    config: DwdpConfig, model: CostModel, *, max_tokens: int, captured_tokens: int
) -> Policy:
    """For `fetch=auto` and `fetch=prefetch`, of steps up to `max_tokens`."""
    _warn_below_break_even(model, max_tokens)
    if config.fetch == FetchMode.PREFETCH:
        return Policy.always(FetchMode.PREFETCH, captured_tokens=captured_tokens)
    policy = Policy.cheapest(model, max_tokens=max_tokens, captured_tokens=captured_tokens)
    logger.info("fetch=auto, by tokens in a step: %s; %s", policy.table(), model.describe())
    return policy


def _warn_below_break_even(model: CostModel, max_tokens: int) -> None:
    if (needed := model.break_even_tokens) <= max_tokens:
        return
    logger.warning(
        "The largest step of this engine has %d tokens, too few to hide a prefetch: it takes "
        "%d (%s). Raise --max-num-batched-tokens, or set dwdp.fetch to 'direct'.",
        max_tokens,
        needed,
        model.describe(),
    )
