# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Refuses the formats of expert weights, and the kernels, that ranks can't share.

docs/formats.md lists what was tried with all others. vLLM may choose such a kernel by itself once
it sees the GPU; then the layers refuse it, see engine/moe/unshared_kernels.py.
"""

import os
from typing import Any

from vllm_dwdp.config import DwdpConfig

OWN_LAYOUT = "bakes the number of a rank's experts into its weights or its code"
OWN_EXCHANGE = "exchanges tokens between ranks by itself"
KERNELS = {
    "humming": OWN_LAYOUT,
    "b12x": OWN_LAYOUT,
    "flashinfer_b12x": OWN_LAYOUT,
    "deep_gemm_mega_moe": OWN_EXCHANGE,
    "flashinfer_moe_ep_cutedsl": OWN_EXCHANGE,
    "flashinfer_moe_ep_mega_deep_gemm": OWN_EXCHANGE,
}
"""Kernels that dwdp can't run on all experts, by their names in --moe-backend, and why."""

MARLIN_INPUT = "VLLM_MARLIN_INPUT_DTYPE"


def expert_format(vllm_config: Any, config: DwdpConfig) -> str | None:
    quantization = vllm_config.model_config.quantization
    backend = vllm_config.kernel_config.moe_backend
    if backend in KERNELS:
        return (
            f"dwdp can't run the kernel '{backend}' on the experts of all ranks: it "
            f"{KERNELS[backend]}; drop --moe-backend."
        )
    if quantization == "humming":
        return (
            f"dwdp can't share experts of quantization method 'humming': it {OWN_LAYOUT}; use "
            "another checkpoint."
        )
    if quantization is not None and os.environ.get(MARLIN_INPUT) == "int8":
        return (
            f"with {MARLIN_INPUT}=int8 vLLM may scale weights by the largest value of a rank's own "
            "experts, which stock vLLM takes of all experts; unset it."
        )
    return None
