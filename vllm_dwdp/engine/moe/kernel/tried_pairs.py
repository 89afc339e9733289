# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The kinds of MoE layers that dwdp's tests have shared between ranks.

For these, and only for these, the sizes of a tensor tell whether it has a row for each expert, see
expert_rows.py. tests/contract/test_formats.py compares this list with the layers that
tests/contract/formats/probe.py builds. CPUUnquantizedExperts is the kernel of CPUs in general, with
which engines are tested.
"""

from typing import Any

TRIED: dict[str, frozenset[str]] = {
    "UnquantizedFusedMoEMethod": frozenset(
        {
            "CPUUnquantizedExperts",
            "FlashInferExperts",
            "TritonExperts",
            "TrtLlmBf16ExpertsMonolithic",
            "X86CPUUnquantizedExperts",
        }
    ),
    "Fp8MoEMethod": frozenset(
        {
            "CPUExpertsFp8",
            "FlashInferExperts",
            "HPCExperts",
            "MarlinExperts",
            "TritonExperts",
            "TritonOrCutlassExperts",
            "TritonOrDeepGemmExperts",
            "TrtLlmFp8ExpertsMonolithic",
        }
    ),
    "ModelOptFp8MoEMethod": frozenset(
        {"FlashInferExperts", "TritonExperts", "TrtLlmFp8ExpertsMonolithic"}
    ),
    "ModelOptNvFp4FusedMoE": frozenset(
        {
            "CutlassExpertsFp4",
            "FlashInferCuteDSLExperts",
            "FlashInferExperts",
            "MarlinExperts",
            "Nvfp4QuantizationEmulationTritonExperts",
            "TrtLlmNvFp4ExpertsMonolithic",
        }
    ),
    "ModelOptMxFp8FusedMoE": frozenset(
        {
            "DeepGemmExperts",
            "MarlinExperts",
            "Mxfp8EmulationTritonExperts",
            "Mxfp8NativeTritonExperts",
            "TrtLlmFp8ExpertsMonolithic",
        }
    ),
    "GptOssMxfp4MoEMethod": frozenset(
        {
            "FlashInferExperts",
            "MarlinExperts",
            "OAITritonMxfp4ExpertsMonolithic",
            "TrtLlmMxfp4ExpertsMonolithic",
            "UnfusedOAITritonExperts",
        }
    ),
    "Mxfp4MoEMethod": frozenset(
        {
            "CutlassExpertsMxfp4",
            "DeepGemmFP4Experts",
            "FlashInferExperts",
            "MarlinExperts",
            "TrtLlmMxfp4ExpertsMonolithic",
            "UnfusedOAITritonExperts",
        }
    ),
    "AutoAWQMoEMethod": frozenset({"CPUExpertsInt4", "MarlinExperts"}),
    "AutoGPTQMoEMethod": frozenset(
        {"CPUExpertsInt4", "MarlinExperts", "TrtLlmMxint4ExpertsMonolithic"}
    ),
    "MoeWNA16Method": frozenset({"TritonWNA16Experts"}),
    "CompressedTensorsWNA16MoEMethod": frozenset(
        {"CPUExpertsInt4", "MarlinExperts", "TrtLlmMxint4ExpertsMonolithic"}
    ),
    "CompressedTensorsW8A8Fp8MoEMethod": frozenset(
        {
            "FlashInferExperts",
            "MarlinExperts",
            "TritonExperts",
            "TritonOrCutlassExperts",
            "TritonOrDeepGemmExperts",
            "TrtLlmFp8ExpertsMonolithic",
        }
    ),
    "CompressedTensorsW8A8Int8MoEMethod": frozenset({"TritonExperts", "ZenCPUExpertsInt8"}),
    "CompressedTensorsW4A4Nvfp4MoEMethod": frozenset(
        {
            "CutlassExpertsFp4",
            "FlashInferCuteDSLExperts",
            "FlashInferExperts",
            "MarlinExperts",
            "Nvfp4QuantizationEmulationTritonExperts",
            "TrtLlmNvFp4ExpertsMonolithic",
        }
    ),
    "CompressedTensorsW4A4Mxfp4MoEMethod": frozenset({"CutlassExpertsMxfp4"}),
    "CompressedTensorsW8A8Mxfp8MoEMethod": frozenset(
        {"MarlinExperts", "TrtLlmFp8ExpertsMonolithic"}
    ),
    "Fp8PerTensorOnlineMoEMethod": frozenset({"MarlinExperts", "TritonExperts"}),
    "Fp8PerBlockOnlineMoEMethod": frozenset(
        {"TritonExperts", "TritonOrDeepGemmExperts", "TrtLlmFp8ExpertsMonolithic"}
    ),
    "Fp8PtpcOnlineMoEMethod": frozenset({"TritonExperts"}),
    "Int8OnlineMoEMethod": frozenset({"TritonExperts"}),
    "Mxfp8OnlineMoEMethod": frozenset({"Mxfp8EmulationTritonExperts"}),
    "QuarkW8A8Fp8MoEMethod": frozenset({"TritonExperts"}),
    "QuarkW8A8Int8MoEMethod": frozenset({"TritonExperts"}),
    "QuarkOCP_MX_MoEMethod": frozenset({"MarlinExperts"}),
    "QuarkNvfp4MoEMethod": frozenset({"FlashInferExperts"}),
}
"""By the class of a quantisation method, the classes of the kernels that it was tried with."""


def pair(layer: Any) -> tuple[str, str]:
    """The names of the classes of a processed layer's quantisation method and of its kernel."""
    method = layer.quant_method
    return type(method).__name__, type(method.moe_kernel.fused_experts).__name__


def is_tried(layer: Any) -> bool:
    method, kernel = pair(layer)
    return kernel in TRIED.get(method, ())
