# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Refuses the formats of expert weights, and the kernels, that ranks can't share.

docs/formats.md lists what was tried with all others. vLLM may choose such a kernel by itself once
it sees the GPU; then the layers refuse it, see engine/moe/kernel/recipe.py.
"""

import os
from typing import Any, NamedTuple

from vllm_dwdp.config import DwdpConfig

OWN_LAYOUT = "bakes the number of a rank's experts into its weights or its code"
OTHER_OUTPUTS = "gave other outputs than stock vLLM on a GPU, for a reason that isn't known yet"
OWN_EXCHANGE = "exchanges tokens between ranks by itself"


OTHER_KERNEL = "choose another one with --moe-backend, for example triton or marlin"


class Unshared(NamedTuple):
    """Kernels that dwdp can't run on all experts, why, and what to do.

    backends: their names in --moe-backend. in_name: part of the names of their classes in vLLM.
    """

    backends: tuple[str, ...]
    in_name: str
    why: str
    remedy: str = OTHER_KERNEL


UNSHARED = (
    Unshared(("humming",), "Humming", OWN_LAYOUT),
    Unshared(("b12x", "flashinfer_b12x"), "B12x", OWN_LAYOUT),
    Unshared((), "CutlassExpertsW4A8Fp8", OTHER_OUTPUTS, "use another checkpoint"),
    Unshared(("deep_gemm_mega_moe",), "MegaMoE", OWN_EXCHANGE),
    Unshared(
        ("flashinfer_moe_ep_cutedsl", "flashinfer_moe_ep_mega_deep_gemm"), "MoeEp", OWN_EXCHANGE
    ),
    Unshared((), "MoonEP", OWN_EXCHANGE),
)

RAN_ON_GPU = frozenset(
    {
        *("TritonExperts", "TritonWNA16Experts", "TritonOrCutlassExperts", "MarlinExperts"),
        *("OAITritonMxfp4ExpertsMonolithic", "UnfusedOAITritonExperts"),
        *("Mxfp8NativeTritonExperts", "Mxfp8EmulationTritonExperts"),
        "Nvfp4QuantizationEmulationTritonExperts",
    }
)
"""vLLM's classes of kernels that have run over shared memory of a GPU, see docs/formats.md."""

OWN_LOADING = "loads experts in a way of its own"
UNSHARED_MODELS = {
    "DbrxForCausalLM": OWN_LOADING,
    "InklingForCausalLM": OWN_LOADING,
    "InklingForConditionalGeneration": OWN_LOADING,
}
"""Architectures whose MoE layers dwdp can't share, and why, as the end of a sentence."""

GPT_OSS = "GptOssForCausalLM"
GPT_OSS_BY = {
    "quark": "vLLM takes an expert's number among all for its row on a rank",
    "nvfp4_per_token": "vLLM doesn't transpose single experts as it quantises them",
}
"""Quantization methods with which dwdp can't load gpt-oss, and why."""

MARLIN_INPUT = "VLLM_MARLIN_INPUT_DTYPE"


def model_class(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Refuse a model by the name of its class in vLLM."""
    model = vllm_config.model_config
    for name in model.architectures:
        if (why := UNSHARED_MODELS.get(name)) and str(model.model_impl) != "transformers":
            return f"dwdp can't share the MoE layers of {name}, which {why}; drop the option."
        if name == GPT_OSS and (why := GPT_OSS_BY.get(model.quantization)):
            return (
                f"dwdp can't load gpt-oss with quantization method '{model.quantization}', since "
                f"{why}; use another checkpoint."
            )
    return None


def expert_format(vllm_config: Any, config: DwdpConfig) -> str | None:
    quantization = vllm_config.model_config.quantization
    backend = vllm_config.kernel_config.moe_backend
    if found := [unshared for unshared in UNSHARED if backend in unshared.backends]:
        return (
            f"dwdp can't run the kernel '{backend}' on the experts of all ranks: it "
            f"{found[0].why}; drop --moe-backend."
        )
    if quantization == "humming":
        return (
            f"dwdp can't share experts of quantization method 'humming': it {OWN_LAYOUT}; use "
            "another checkpoint."
        )
    if quantization == "compressed-tensors" and _is_w4a8(vllm_config.model_config.hf_config):
        return (
            "dwdp can't share experts with 4-bit weights and 8-bit activations: vLLM's kernel "
            f"{OTHER_OUTPUTS}; use another checkpoint."
        )
    if quantization is not None and os.environ.get(MARLIN_INPUT) == "int8":
        return (
            f"with {MARLIN_INPUT}=int8 vLLM may scale weights by the largest value of a rank's own "
            "experts, which stock vLLM takes of all experts; unset it."
        )
    return None


def why_unshared(class_name: str) -> str | None:
    """Why dwdp can't run vLLM's kernels of a class on all experts, with a remedy; or None."""
    found = (one for one in UNSHARED if one.in_name in class_name)
    return next((f"it {one.why}; {one.remedy}" for one in found), None)


def _is_w4a8(hf_config: Any) -> bool:
    """Whether the experts of a model of compressed-tensors have INT4 weights and FP8 activations.

    That is certain only if all its parts have, and no experts are left out.
    """
    described = getattr(hf_config, "quantization_config", None) or {}
    groups = list((described.get("config_groups") or {}).values())
    leaves_experts_out = any("expert" in name for name in described.get("ignore") or ())
    return bool(groups) and not leaves_experts_out and all(map(_has_w4a8, groups))


def _has_w4a8(group: dict[str, Any]) -> bool:
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    found = [(part.get("num_bits"), part.get("type")) for part in (weights, inputs)]
    return found == [(4, "int"), (8, "float")]
