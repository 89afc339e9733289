# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Every quantisation method of vLLM's MoE layers with every kernel that can run it."""

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.oracle import fp8 as fp8_oracle
from vllm.model_executor.layers.fused_moe.oracle import (
    int8,
    int_wna16,
    mxfp4,
    mxfp8,
    nvfp4,
    unquantized,
    w4a8,
)
from vllm.model_executor.layers.quantization import modelopt
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from vllm.model_executor.layers.quantization.fp8 import Fp8Config
from vllm.model_executor.layers.quantization.moe_wna16 import MoeWNA16Config
from vllm.model_executor.layers.quantization.mxfp4 import GptOssMxfp4Config, Mxfp4Config
from vllm.model_executor.layers.quantization.online import fp8 as online_fp8
from vllm.model_executor.layers.quantization.online import int8 as online_int8
from vllm.model_executor.layers.quantization.online import mxfp4 as online_mxfp4
from vllm.model_executor.layers.quantization.online import mxfp8 as online_mxfp8
from vllm.model_executor.layers.quantization.online import nvfp4 as online_nvfp4
from vllm.model_executor.layers.quantization.quark import quark_moe as quark
from vllm.model_executor.layers.quantization.utils import quant_utils
from vllm.model_executor.models.gpt_oss import GptOssRoutedExperts

SM80, SM90, SM100, SM120 = (8, 0), (9, 0), (10, 0), (12, 0)
FP16 = torch.float16
Patches = list[tuple[Any, str, Any]]


@dataclass(frozen=True)
class Family:
    """How vLLM chooses among the kernels of one kind of weights."""

    select: str
    backends: Any
    to_kernels: Callable[[Any], list[type]]

    def choice(self, backend: str) -> tuple[Any, type]:
        chosen = self.backends[backend]
        return chosen, self.to_kernels(chosen)[0]


UNQUANTIZED = Family(
    "select_unquantized_moe_backend",
    unquantized.UnquantizedMoeBackend,
    unquantized.backend_to_kernel_cls,
)
FP8 = Family("select_fp8_moe_backend", fp8_oracle.Fp8MoeBackend, fp8_oracle.backend_to_kernel_cls)
NVFP4 = Family("select_nvfp4_moe_backend", nvfp4.NvFp4MoeBackend, nvfp4.backend_to_kernel_cls)
MXFP4 = Family("select_mxfp4_moe_backend", mxfp4.Mxfp4MoeBackend, mxfp4.backend_to_kernel_cls)
DEEPSEEK_MXFP4 = Family(
    "select_deepseek_v4_mxfp4_moe_backend", mxfp4.Mxfp4MoeBackend, mxfp4.backend_to_kernel_cls
)
WNA16 = Family(
    "select_wna16_moe_backend", int_wna16.WNA16MoEBackend, int_wna16.backend_to_kernel_cls
)
INT8 = Family("select_int8_moe_backend", int8.Int8MoeBackend, int8.backend_to_kernel_cls)
W4A8 = Family("select_w4a8_moe_backend", w4a8.W4A8MoeBackend, w4a8.backend_to_kernel_cls)
MXFP8 = Family(
    "select_mxfp8_moe_backend", fp8_oracle.Fp8MoeBackend, mxfp8._mxfp8_backend_to_kernel_cls
)


@dataclass(frozen=True)
class Case:
    """A layer to build: a method, made from `config`, with a kernel, `backend` of `family`.

    needs_model: whether the method reads the model's configuration. patches: what else to replace.
    """

    method: str
    family: Family
    backend: str
    config: Callable[[], Any]
    capability: tuple[int, int] = SM90
    dtype: torch.dtype = torch.bfloat16
    has_bias: bool = False
    activation: str = "silu"
    hidden: int = 1024
    intermediate: int = 256
    options: dict[str, Any] = field(default_factory=dict)
    is_cpu: bool = False
    needs_model: bool = False
    patches: Callable[[], Patches] = list

    @property
    def name(self) -> str:
        major, minor = self.capability
        where = "CPU" if self.is_cpu else f"sm{major}{minor}"
        return f"{self.method}, {self.backend}, {where}"

    @property
    def needs_triton_kernels(self) -> bool:
        return self.family in (MXFP4, DEEPSEEK_MXFP4) and self.backend.startswith("TRITON")


def all_cases() -> list[Case]:
    return [
        *_unquantised_cases(),
        *_fp8_cases(),
        *_modelopt_cases(),
        *_mxfp4_cases(),
        *_integer_cases(),
        *_compressed_cases(),
        *_online_cases(),
        *_quark_cases(),
        *_odd_cases(),
        *_cpu_cases(),
    ]


def _none() -> None:
    return None


def _unquantised_cases() -> Iterator[Case]:
    for backend, sm in (
        ("TRITON", SM90),
        ("FLASHINFER_CUTLASS", SM100),
        ("FLASHINFER_TRTLLM", SM100),
    ):
        yield Case("unquantised", UNQUANTIZED, backend, _none, sm)
    yield Case("unquantised, biases", UNQUANTIZED, "TRITON", _none, has_bias=True)


def fp8(scheme: str, block: list[int] | None = None) -> Callable[[], Fp8Config]:
    return lambda: Fp8Config(
        is_checkpoint_fp8_serialized=True, activation_scheme=scheme, weight_block_size=block
    )


BLOCK_FP8, STATIC_FP8, DYNAMIC_FP8 = fp8("dynamic", [128, 128]), fp8("static"), fp8("dynamic")


def _fp8_cases() -> Iterator[Case]:
    for backend, sm in (
        *(("TRITON", SM90), ("DEEPGEMM", SM90), ("DEEPGEMM", SM100), ("VLLM_CUTLASS", SM90)),
        *(("MARLIN", SM80), ("FLASHINFER_CUTLASS", SM90), ("FLASHINFER_TRTLLM", SM100)),
        *(("HPC", SM90), ("HUMMING", SM90), ("BATCHED_DEEPGEMM", SM90)),
    ):
        yield Case("fp8 in blocks", FP8, backend, BLOCK_FP8, sm)
    for backend, sm in (
        *(("TRITON", SM90), ("VLLM_CUTLASS", SM90), ("MARLIN", SM80)),
        *(("FLASHINFER_CUTLASS", SM90), ("FLASHINFER_TRTLLM", SM100), ("HPC", SM90)),
    ):
        yield Case("fp8, static", FP8, backend, STATIC_FP8, sm)
    for backend, sm in (("TRITON", SM90), ("MARLIN", SM80)):
        yield Case("fp8, dynamic", FP8, backend, DYNAMIC_FP8, sm)


def modelopt_nvfp4(name: str = "NVFP4") -> Callable[[], Any]:
    return lambda: modelopt.ModelOptNvFp4Config(name, True, None, [], 16)


def modelopt_mxfp8() -> Any:
    return modelopt.ModelOptMxFp8Config(True, None, [])


def _modelopt_cases() -> Iterator[Case]:
    for backend, sm in (
        ("TRITON", SM90),
        ("FLASHINFER_CUTLASS", SM90),
        ("FLASHINFER_TRTLLM", SM100),
    ):
        config = lambda: modelopt.ModelOptFp8Config("FP8", True, None, [])  # noqa: E731
        yield Case("modelopt fp8", FP8, backend, config, sm)
    for backend, sm in (
        *(("FLASHINFER_TRTLLM", SM100), ("FLASHINFER_CUTLASS", SM100)),
        *(("FLASHINFER_CUTEDSL", SM100), ("FLASHINFER_B12X", SM120), ("VLLM_CUTLASS", SM100)),
        *(("MARLIN", SM90), ("EMULATION", SM90), ("B12X", SM120), ("HUMMING", SM90)),
    ):
        yield Case("modelopt nvfp4", NVFP4, backend, modelopt_nvfp4(), sm)
    yield Case("modelopt nvfp4, W4A16", NVFP4, "MARLIN", modelopt_nvfp4("W4A16_NVFP4"))
    for backend, sm in (
        *(("FLASHINFER_TRTLLM", SM100), ("DEEPGEMM", SM100), ("MARLIN", SM90)),
        *(("EMULATION", SM90), ("TRITON_MXFP8", SM90)),
    ):
        yield Case("modelopt mxfp8", MXFP8, backend, modelopt_mxfp8, sm)


def _mxfp4_cases() -> Iterator[Case]:
    gpt_oss: dict[str, Any] = {"has_bias": True, "activation": "swigluoai"}
    gpt_oss["options"] = {"routed_experts_cls": GptOssRoutedExperts}
    for backend, sm in (
        ("FLASHINFER_TRTLLM_MXFP4_MXFP8", SM100),
        ("FLASHINFER_TRTLLM_MXFP4_BF16", SM100),
        ("FLASHINFER_CUTLASS_MXFP4_MXFP8", SM100),
        ("FLASHINFER_CUTLASS_MXFP4_BF16", SM90),
        *(("MARLIN", SM80), ("TRITON", SM90), ("TRITON", SM100), ("TRITON_UNFUSED", SM90)),
        *(("EMULATION", SM90), ("HUMMING", SM90)),
    ):
        yield Case("gpt-oss mxfp4", MXFP4, backend, GptOssMxfp4Config, sm, **gpt_oss)
    padded: dict[str, Any] = {**gpt_oss, "hidden": 1440, "intermediate": 416}
    for backend, sm in (
        *(("FLASHINFER_TRTLLM_MXFP4_BF16", SM100), ("FLASHINFER_CUTLASS_MXFP4_BF16", SM90)),
        *(("MARLIN", SM80), ("TRITON", SM90)),
    ):
        yield Case("gpt-oss mxfp4, padded", MXFP4, backend, GptOssMxfp4Config, sm, **padded)
    for backend, sm in (
        ("DEEPGEMM_MXFP4", SM100),
        ("FLASHINFER_TRTLLM_MXFP4_MXFP8", SM100),
        ("FLASHINFER_CUTLASS_MXFP4_MXFP8", SM100),
        ("FLASHINFER_CUTLASS_MXFP4_BF16", SM90),
        *(("CUTLASS_MXFP4_MXFP4", SM100), ("MARLIN", SM80), ("TRITON", SM90)),
        *(("EMULATION", SM90), ("B12X_MXFP4_MXFP8", SM120), ("HUMMING", SM90)),
        *(("TRITON_UNFUSED", SM90), ("TRITON_UNFUSED", SM100)),
    ):
        yield Case("mxfp4", DEEPSEEK_MXFP4, backend, Mxfp4Config, sm)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def awq() -> Any:
    return AutoAWQConfig.from_config(AWQ)


def gptq(bits: int = 4) -> Callable[[], Any]:
    return lambda: AutoGPTQConfig.from_config(GPTQ | {"bits": bits})


def _integer_cases() -> Iterator[Case]:
    yield Case("awq", WNA16, "MARLIN", awq, dtype=FP16)
    yield Case("awq", WNA16, "HUMMING", awq, dtype=FP16)
    yield Case("gptq", WNA16, "MARLIN", gptq(), dtype=FP16)
    yield Case("gptq, 8 bits", WNA16, "MARLIN", gptq(8), dtype=FP16)
    yield Case("gptq", WNA16, "FLASHINFER_TRTLLM", gptq(), SM100)
    for kind, values in (("awq", AWQ), ("gptq", GPTQ)):
        config = lambda values=values: MoeWNA16Config.from_config(values)  # noqa: E731
        yield Case(f"moe_wna16 of {kind}", WNA16, "TRITON", config, dtype=FP16)
    yield Case(
        "gptq, int8 activations", WNA16, "MARLIN", gptq(), dtype=FP16, patches=int8_activations
    )
    yield Case(
        "compressed W4A16, int8 activations",
        WNA16,
        "MARLIN",
        compressed(W4, None, "pack-quantized"),
        patches=int8_activations,
    )


def int8_activations() -> Patches:
    import vllm.model_executor.layers.quantization.auto_gptq as auto_gptq
    import vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_wna16 as wna16  # noqa: E501

    name = "get_marlin_input_dtype"
    return [(m, name, lambda *_: torch.int8) for m in (wna16, auto_gptq)]


def compressed(weights: Any, inputs: Any, form: str) -> Callable[[], Any]:
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs,
        "format": form,
    }
    values = {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": [],
        "config_groups": {"group_0": group},
    }
    return lambda: CompressedTensorsConfig.from_config(values)


def _weights(kind: str, bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    made = {"symmetric": True, "dynamic": False, "observer": "minmax", "type": kind}
    return made | {"num_bits": bits, "strategy": strategy} | more


def _inputs(kind: str, strategy: str, bits: int = 8, **more: Any) -> dict[str, Any]:
    made = {"symmetric": True, "dynamic": True, "type": kind}
    return made | {"num_bits": bits, "strategy": strategy} | more


W4 = _weights("int", 4, "group", group_size=128)
W4_CHANNEL = _weights("int", 4, "channel")
W8 = _weights("int", 8, "channel")
FP8_TENSOR, FP8_CHANNEL = _weights("float", 8, "tensor"), _weights("float", 8, "channel")
FP8_BLOCK = _weights("float", 8, "block", block_structure=[128, 128])
FP8_TOKEN, INT8_TOKEN = _inputs("float", "token"), _inputs("int", "token")
FP8_GROUP = _inputs("float", "group", group_size=128)
NVFP4_WEIGHTS = _weights("float", 4, "tensor_group", group_size=16)
NVFP4_INPUTS = _inputs("float", "tensor_group", 4, group_size=16, dynamic="local")
MX = {"group_size": 32, "scale_dtype": "torch.uint8"}
MXFP4_WEIGHTS, MXFP8_WEIGHTS = (
    _weights("float", 4, "group", **MX),
    _weights("float", 8, "group", **MX),
)
MXFP8_INPUTS = _inputs("float", "group", **MX)


def _compressed_cases() -> Iterator[Case]:
    packed = "pack-quantized"
    yield Case("compressed W4A16", WNA16, "MARLIN", compressed(W4, None, packed))
    yield Case("compressed W4A16 by channel", WNA16, "MARLIN", compressed(W4_CHANNEL, None, packed))
    ordered = compressed(W4 | {"actorder": "group"}, None, packed)
    yield Case("compressed W4A16, ordered", WNA16, "MARLIN", ordered)
    small = compressed(W4 | {"group_size": 32}, None, packed)
    yield Case("compressed W4A16", WNA16, "FLASHINFER_TRTLLM", small, SM100)
    yield Case("compressed W4A16", WNA16, "HUMMING", compressed(W4, None, packed))
    for kind, weights, inputs, backend, sm in (
        ("static", FP8_TENSOR, FP8_TENSOR, "TRITON", SM90),
        ("static", FP8_TENSOR, FP8_TENSOR, "FLASHINFER_CUTLASS", SM90),
        ("static", FP8_TENSOR, FP8_TENSOR, "FLASHINFER_TRTLLM", SM100),
        ("by channel", FP8_CHANNEL, FP8_TOKEN, "TRITON", SM90),
        ("by channel", FP8_CHANNEL, FP8_TOKEN, "VLLM_CUTLASS", SM90),
        ("by channel", FP8_CHANNEL, FP8_TOKEN, "MARLIN", SM80),
        ("in blocks", FP8_BLOCK, FP8_GROUP, "TRITON", SM90),
        ("in blocks", FP8_BLOCK, FP8_GROUP, "DEEPGEMM", SM100),
        ("in blocks", FP8_BLOCK, FP8_GROUP, "FLASHINFER_TRTLLM", SM100),
    ):
        config = compressed(weights, inputs, "float-quantized")
        yield Case(f"compressed fp8, {kind}", FP8, backend, config, sm)
    int8_config = compressed(W8, INT8_TOKEN, "int-quantized")
    for backend in ("TRITON", "HUMMING"):
        yield Case("compressed int8", INT8, backend, int8_config)
    yield Case("compressed W4A8", W4A8, "CUTLASS", compressed(W4, FP8_TOKEN, packed))
    nvfp4_config = compressed(NVFP4_WEIGHTS, NVFP4_INPUTS, "nvfp4-pack-quantized")
    for backend, sm in (
        *(("FLASHINFER_TRTLLM", SM100), ("FLASHINFER_CUTLASS", SM100)),
        *(("FLASHINFER_CUTEDSL", SM100), ("VLLM_CUTLASS", SM100)),
        *(("MARLIN", SM90), ("EMULATION", SM90)),
    ):
        yield Case("compressed nvfp4", NVFP4, backend, nvfp4_config, sm)
    only_weights = compressed(NVFP4_WEIGHTS, None, "nvfp4-pack-quantized")
    yield Case("compressed nvfp4, W4A16", NVFP4, "MARLIN", only_weights)
    mxfp4_form = "mxfp4-pack-quantized"
    yield Case("compressed mxfp4", MXFP4, "MARLIN", compressed(MXFP4_WEIGHTS, None, mxfp4_form))
    both = compressed(MXFP4_WEIGHTS, MXFP4_WEIGHTS | {"dynamic": True}, mxfp4_form)
    yield Case("compressed mxfp4", MXFP4, "CUTLASS_MXFP4_MXFP4", both, SM100)
    mxfp8_config = compressed(MXFP8_WEIGHTS, MXFP8_INPUTS, "mxfp8-quantized")
    yield Case("compressed mxfp8", MXFP8, "FLASHINFER_TRTLLM", mxfp8_config, SM100)
    yield Case("compressed mxfp8", MXFP8, "MARLIN", mxfp8_config)


class MethodConfig(QuantizationConfig):
    """A quantisation config that has one method, made of the layer by `make`."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self._make = make

    @classmethod
    def get_name(cls) -> str:
        return "one method"

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return []

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> None:
        return None

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        return self._make(layer)


def method(kind: type, *args: Any) -> Callable[[], MethodConfig]:
    """A config of this method, which is made of the layer's config and `args`."""
    return lambda: MethodConfig(lambda layer: kind(layer.moe_config, *args))


def _online_cases() -> Iterator[Case]:
    for kind, made, family, backends in (
        (
            "fp8 by tensor",
            online_fp8.Fp8PerTensorOnlineMoEMethod,
            FP8,
            (("TRITON", SM90), ("MARLIN", SM80)),
        ),
        (
            "fp8 in blocks",
            online_fp8.Fp8PerBlockOnlineMoEMethod,
            FP8,
            (("TRITON", SM90), ("DEEPGEMM", SM100), ("FLASHINFER_TRTLLM", SM100)),
        ),
        ("fp8 by channel", online_fp8.Fp8PtpcOnlineMoEMethod, FP8, (("TRITON", SM90),)),
        ("int8", online_int8.Int8OnlineMoEMethod, INT8, (("TRITON", SM90),)),
        (
            "mxfp8",
            online_mxfp8.Mxfp8OnlineMoEMethod,
            MXFP8,
            (("FLASHINFER_TRTLLM", SM100), ("EMULATION", SM90)),
        ),
        ("mxfp4", online_mxfp4.Mxfp4OnlineMoEMethod, MXFP4, (("MARLIN", SM90),)),
        ("nvfp4", online_nvfp4.Nvfp4OnlineMoEMethod, NVFP4, (("FLASHINFER_TRTLLM", SM100),)),
    ):
        for backend, sm in backends:
            config = lambda made=made: MethodConfig(lambda layer: made(moe=layer.moe_config))  # noqa: E731
            yield Case(f"online {kind}", family, backend, config, sm)


def _quark_cases() -> Iterator[Case]:
    static, channel = quant_utils.kFp8StaticTensorSym, quant_utils.kFp8StaticChannelSym
    w8a8 = quark.QuarkW8A8Fp8MoEMethod
    by_token = method(w8a8, channel, quant_utils.kFp8DynamicTokenSym)
    yield Case("quark fp8, static", FP8, "TRITON", method(w8a8, static, static), needs_model=True)
    yield Case("quark fp8 by channel", FP8, "TRITON", by_token, needs_model=True)
    int8_config = method(
        quark.QuarkW8A8Int8MoEMethod,
        quant_utils.kInt8StaticChannelSym,
        quant_utils.kInt8DynamicTokenSym,
    )
    yield Case("quark int8", INT8, "TRITON", int8_config)
    mx = method(quark.QuarkOCP_MX_MoEMethod, quant_utils.kMxfp4Static, None)
    yield Case("quark mxfp4", MXFP4, "MARLIN", mx, needs_model=True)
    nv = method(quark.QuarkNvfp4MoEMethod, None, quant_utils.kNvfp4Dynamic)
    yield Case("quark nvfp4", NVFP4, "FLASHINFER_CUTLASS", nv, SM100)


def _odd_cases() -> Iterator[Case]:
    """Biases, limits of activations, and sizes that kernels pad."""
    yield Case("fp8 in blocks, biases", FP8, "TRITON", BLOCK_FP8, has_bias=True)
    yield Case("gptq, biases", WNA16, "MARLIN", gptq(), dtype=FP16, has_bias=True)
    yield Case("fp8, dynamic, biases", FP8, "MARLIN", DYNAMIC_FP8, SM80, has_bias=True)
    options = {"swiglu_limit": 7.0, "swiglu_alpha": 1.702, "swiglu_beta": 1.0}
    limit: dict[str, Any] = {"options": options, "activation": "swigluoai_uninterleave"}
    nv = modelopt_nvfp4()
    for backend in ("FLASHINFER_TRTLLM", "FLASHINFER_CUTEDSL"):
        yield Case("modelopt nvfp4, limited", NVFP4, backend, nv, SM100, **limit)
    yield Case(
        "modelopt mxfp8, limited", MXFP8, "FLASHINFER_TRTLLM", modelopt_mxfp8, SM100, **limit
    )
    yield Case(
        "mxfp4, limited",
        DEEPSEEK_MXFP4,
        "FLASHINFER_CUTLASS_MXFP4_MXFP8",
        Mxfp4Config,
        SM100,
        options={"swiglu_limit": 7.0},
    )
    odd = {"intermediate": 384, "hidden": 1536}
    yield Case("fp8 in blocks, odd sizes", FP8, "DEEPGEMM", BLOCK_FP8, SM100, **odd)
    trtllm = "FLASHINFER_TRTLLM"
    yield Case("unquantised, padded", UNQUANTIZED, trtllm, _none, SM100, intermediate=192)
    padded = {"intermediate": 224, "hidden": 1184}
    yield Case("modelopt nvfp4, padded", NVFP4, trtllm, nv, SM100, **padded)
    yield Case("awq, padded", WNA16, "MARLIN", awq, dtype=FP16, intermediate=384)


def _cpu_cases() -> Iterator[Case]:
    """vLLM's kernels for CPUs, whose operators are the real ones."""
    gpt_oss = {"has_bias": True, "activation": "swigluoai", "needs_model": True}
    w4a8_config = compressed(W4_CHANNEL, INT8_TOKEN, "pack-quantized")
    for kind, family, config, more in (
        ("unquantised", UNQUANTIZED, _none, {}),
        ("fp8 in blocks", FP8, BLOCK_FP8, {}),
        ("fp8, static", FP8, STATIC_FP8, {}),
        ("gpt-oss mxfp4", MXFP4, GptOssMxfp4Config, gpt_oss),
        ("mxfp4", DEEPSEEK_MXFP4, Mxfp4Config, {}),
        ("compressed int8", INT8, compressed(W8, INT8_TOKEN, "int-quantized"), {}),
        ("awq", WNA16, awq, {}),
        ("gptq", WNA16, gptq(), {}),
        ("compressed W4A16", WNA16, compressed(W4, None, "pack-quantized"), {}),
    ):
        yield Case(kind, family, "CPU", config, is_cpu=True, **more)
    yield Case("compressed W4A8 int8", W4A8, "CPU_INT4", w4a8_config, is_cpu=True)


def model_config(dtype: torch.dtype) -> Any:
    """The parts of a model's configuration that methods read."""
    hf_config = types.SimpleNamespace(model_type="some")
    return types.SimpleNamespace(
        hf_config=hf_config,
        hf_text_config=hf_config,
        dtype=dtype,
        quantization=None,
        quantization_config=None,
    )
