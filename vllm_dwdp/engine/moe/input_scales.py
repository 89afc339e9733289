# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Gives each layer the static activation scales that stock vLLM would give it.

vLLM reduces a scale per expert to one per layer, the largest of the experts that a rank loads
(`process_fp8_input_tensor_strategy_moe`). A dwdp layer runs on all experts, so it needs the largest
scale of all ranks.
"""

import json
from collections.abc import Callable, Iterable, Sequence

from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts

Exchange = Callable[[bytes], Sequence[bytes]]
"""Sends this rank's bytes to its group, and returns those of every rank, in rank order."""


def take_largest(layers: Iterable[DwdpRoutedExperts], exchange: Exchange) -> None:
    """Set the scales of all layers to the largest of all ranks; no exchange if there are none.

    Called before the layers are bound, because kernels keep values derived from a scale.
    """
    scales = [scale for layer in layers for scale in layer.input_scales().values()]
    if not scales:
        return
    own = [scale.item() for scale in scales]
    of_ranks = [json.loads(sent) for sent in exchange(json.dumps(own).encode())]
    for scale, values in zip(scales, zip(*of_ranks, strict=True), strict=True):
        scale.data.fill_(max(values))
