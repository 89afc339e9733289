# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What faster context servers are worth to a whole deployment that also decodes.

Context and decode servers handle the same requests per second. A gain of the context servers saves
some of their GPUs, and leaves decode as it is: tokens per second and user stay the same.
"""

import bisect

from vllm_dwdp.planning.decode import expert_parallel_decode_seconds
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.rates import Rates

_MOST_SEQUENCES = 4096


def gain_per_gpu(context_gain: float, context_share: float) -> float:
    """Output tokens per second and GPU, over those before: with fewer context GPUs.

    context_gain: throughput of a context GPU over that before. context_share: share of GPUs that
    were context GPUs before.
    """
    return 1 / (1 - context_share + context_share / context_gain)


def context_share(
    model: MoeModel,
    decode_rates: Rates,
    *,
    context_tokens_per_s: float,
    input_tokens: float,
    output_tokens: float,
    tokens_per_s_per_user: float,
) -> float:
    """Share of the GPUs that read prompts, if decode uses expert parallelism.

    decode_rates: of a group of decode ranks. context_tokens_per_s: prompt tokens per second of one
    context GPU. Raises PlanError if no decode rank is as fast as the users are to see.
    """
    batch = _largest_batch(model, decode_rates, input_tokens, 1 / tokens_per_s_per_user)
    context = input_tokens / context_tokens_per_s
    decode = output_tokens / (batch * tokens_per_s_per_user)
    return context / (context + decode)


def _largest_batch(model: MoeModel, rates: Rates, context: float, limit: float) -> int:
    """Sequences on a rank whose decode step takes at most `limit` seconds."""

    def is_too_slow(batch: int) -> bool:
        ranks = rates.num_ranks
        step = expert_parallel_decode_seconds(model, rates, ranks, batch=batch, context=context)
        return step > limit

    found = bisect.bisect_left(range(1, _MOST_SEQUENCES), True, key=is_too_slow)
    if not found:
        raise PlanError(
            f"expected decode steps of at most {1e3 * limit:.1f} ms, but one sequence takes longer."
        )
    return found
