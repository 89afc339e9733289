# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Static activation scales: a layer has one, the largest that the checkpoint gives its experts.

vLLM takes it over the experts that a rank loads (`process_fp8_input_tensor_strategy_moe`); a layer
of dwdp runs on all experts, and needs the largest of all ranks.
"""

import json
from collections.abc import Callable, Iterable, Sequence

from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts

Exchange = Callable[[bytes], Sequence[bytes]]
"""What this rank sends -> what every rank sent, in rank order."""


def take_largest(layers: Iterable[DwdpRoutedExperts], exchange: Exchange) -> None:
    """Set the scales of all layers to the largest of all ranks; asks nobody where there are none.

    Before the layers are bound: kernels keep what is derived from a scale.
    """
    scales = [scale for layer in layers for scale in layer.input_scales().values()]
    if not scales:
        return
    own = [scale.item() for scale in scales]
    of_ranks = [json.loads(sent) for sent in exchange(json.dumps(own).encode())]
    for scale, values in zip(scales, zip(*of_ranks, strict=True), strict=True):
        scale.data.fill_(max(values))
