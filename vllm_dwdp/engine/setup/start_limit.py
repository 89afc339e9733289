# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Raises vLLM's time limit for a start, so that engines that get further aren't ended.

While the ranks of a group load and share their experts, dwdp ends a start in which a rank gets no
further for `timeout_s`. vLLM limits the whole start instead, and would end one that only has much
to load. A rank that is alone in its group has no peers that watch it, so vLLM's limit stays.
"""

import math
from typing import Any

from vllm.logger import init_logger

from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.engine.compat import (
    READY_TIMEOUT,
    READY_TIMEOUT_S,
    raise_ready_timeout,
    read_ready_timeout,
)

logger = init_logger("vllm.dwdp")


def outlast_progress(vllm_config: Any, config: DwdpConfig) -> None:
    """Raise vLLM's limit to the longest start that dwdp allows; a limit set by the user stays.

    Called in the front-end's process, before engines start, for groups of several ranks.
    """
    longest = _longest_start_s(vllm_config, config)
    given = read_ready_timeout()
    if given is None:
        raise_ready_timeout(longest)
        logger.info("%s is %d for this start: %s", READY_TIMEOUT, longest, _reason(config))
    elif given < longest:
        logger.info(
            "%s is set to %d: vLLM ends this start after that time even if it gets further. Set it "
            "to %d or leave it out: %s",
            *(READY_TIMEOUT, given, longest, _reason(config)),
        )


def _longest_start_s(vllm_config: Any, config: DwdpConfig) -> int:
    """The seconds of the longest start: `timeout_s` for each layer, and once more for the rest.

    Not less than vLLM itself allows: its limit is also for what dwdp doesn't limit.
    """
    num_layers = vllm_config.model_config.get_total_num_hidden_layers()
    return max(READY_TIMEOUT_S, math.ceil(config.timeout_s * (num_layers + 1)))


def _reason(config: DwdpConfig) -> str:
    return (
        "while experts are loaded and shared, dwdp itself ends a start in which a rank gets no "
        f"further for {config.timeout_s:g} s (dwdp.timeout_s)."
    )
