# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets vLLM build MoE layers for a GPU on tensors of a CPU, in a process of its own.

* vLLM's platform says that it is a GPU of a given capability. No kernel is ever called.
* vLLM's own Python runs unchanged. Operators that only a GPU has are replaced by stand-ins: they
  shuffle the rows of one expert, quantise it or lay out its scales, as the real ones do, so what a
  stand-in gives for one expert doesn't depend on the others.

Import this module before anything of vLLM.
"""

import contextlib
import importlib
import importlib.machinery
import inspect
import math
import os
import pkgutil
import sys
import types
from collections.abc import Callable
from enum import IntEnum
from typing import Any

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
import kernel_source
import torch

torch.set_num_threads(1)

import vllm.platforms
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import DeviceCapability, PlatformEnum


class ClaimsCuda(CpuPlatform):
    """A CPU's platform that says it is a GPU. It says so once all modules are imported."""

    _enum = PlatformEnum.CPU
    device_type = "cpu"
    capability = (9, 0)

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(*cls.capability)

    @classmethod
    def has_device_capability(cls, capability: Any, device_id: int = 0) -> bool:
        if isinstance(capability, int):
            capability = divmod(capability, 10)
        return cls.capability >= tuple(capability)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "claims CUDA"

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        return 132

    @classmethod
    def get_global_graph_pool(cls) -> None:
        return None


def claim(capability: tuple[int, int], *, is_cpu: bool = False) -> None:
    """Be a GPU of this capability from now on, or a CPU; forget what vLLM has asked before."""
    ClaimsCuda.capability = capability
    ClaimsCuda._enum = PlatformEnum.CPU if is_cpu else PlatformEnum.CUDA
    _aim_triton_kernels()
    words = "vllm.platforms", "vllm.utils", "quantization", "fused_moe"
    for name, module in list(sys.modules.items()):
        if any(word in name for word in words):
            for value in list(vars(module).values()):
                with contextlib.suppress(Exception):
                    value.cache_clear()


def _aim_triton_kernels() -> None:
    with contextlib.suppress(ImportError):
        import triton_kernels.target_info
        import triton_kernels.tensor
        import triton_kernels.tensor_details.layout as layout

        def is_at_least(major: int, minor: int = 0) -> bool:
            return ClaimsCuda.capability >= (major, minor)

        for module in (triton_kernels.target_info, layout, triton_kernels.tensor):
            module.cuda_capability_geq = is_at_least
        triton_kernels.target_info.is_cuda = lambda: True
        layout.is_hip_cdna4 = lambda: False


def shuffled(size: int) -> torch.Tensor:
    """A fixed order of so many rows."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))


def shuffle_bytes(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.contiguous().view(torch.int32).reshape(-1)
    return flat[shuffled(flat.numel())]


def interleave(scales: torch.Tensor) -> torch.Tensor:
    """FlashInfer's interleaved scales: tiles of 128 rows and 4 columns, flat, for each expert."""
    if scales.dim() == 3:
        return torch.cat([interleave(expert) for expert in scales])
    rows, columns = -(-scales.shape[0] // 128) * 128, -(-scales.shape[1] // 4) * 4
    padded = torch.zeros(rows, columns, dtype=scales.dtype)
    padded[: scales.shape[0], : scales.shape[1]] = scales
    tiles = padded.view(rows // 128, 4, 32, columns // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)


def to_mma(
    scales: torch.Tensor, m: int, k: int, num_groups: int = 1, sf_vec_size: int = 16
) -> torch.Tensor:
    columns = k // sf_vec_size
    tiles = scales.view(num_groups, m // 128, columns // 4, 32, 4, 4)
    return tiles.permute(3, 4, 1, 5, 2, 0)


def to_sm90_scales(scales: torch.Tensor, group_size: int = 32) -> torch.Tensor:
    experts, rows, _ = scales.shape
    groups = scales.reshape(experts, rows, -1, 4).permute(0, 2, 1, 3)
    return groups.reshape(experts, -1, 4 * rows).contiguous()


class ActivationType(IntEnum):
    """FlashInfer's numbers of activations."""

    Gelu = 0
    Relu = 1
    Silu = 2
    Swiglu = 3
    Geglu = 4
    SwigluBias = 5
    Relu2 = 6
    Identity = 7
    Situ = 8


def row_indices(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return shuffled(x.shape[0])


FLASHINFER: dict[str, Any] = {
    "_maybe_get_cached_w3_w1_permute_indices": lambda cache, x, *_, **__: shuffled(x.shape[0]),
    "get_w2_permute_indices_with_cache": lambda cache, x, *_, **__: shuffled(x.shape[0]),
    "get_reorder_rows_for_gated_act_gemm_row_indices": row_indices,
    "get_shuffle_matrix_a_row_indices": row_indices,
    "get_shuffle_matrix_sf_a_row_indices": row_indices,
    "reorder_rows_for_gated_act_gemm": lambda x: x[shuffled(x.shape[0])],
    "shuffle_matrix_a": lambda x, tile: x[shuffled(x.shape[0])].contiguous(),
    "shuffle_matrix_sf_a": lambda x, tile, num_elts_per_sf=16: interleave(
        x[shuffled(x.shape[0])]
    ).reshape(x.shape),
    "nvfp4_block_scale_interleave": interleave,
    "block_scale_interleave": interleave,
    "convert_sf_to_mma_layout": to_mma,
    "convert_to_block_layout": lambda x, k: x.view(x.shape[0], -1, k).permute(1, 0, 2).contiguous(),
    "interleave_moe_scales_for_sm90_mixed_gemm": to_sm90_scales,
    "interleave_moe_weights_for_sm90_mixed_gemm": lambda w, kind=None: w[
        :, shuffled(w.shape[1])
    ].contiguous(),
    "ActivationType": ActivationType,
}
FLASHINFER_MODULES = (
    *("flashinfer", "flashinfer.fused_moe", "flashinfer.fused_moe.core", "flashinfer.utils"),
    *("flashinfer.quantization", "flashinfer.quantization.fp4_quantization", "flashinfer.comm"),
    *("flashinfer.cute_dsl", "flashinfer.cute_dsl.utils", "flashinfer.fp4_quantization"),
    "flashinfer.tllm_enums",
)


class StandInModule(types.ModuleType):
    """A module whose missing functions raise NotImplementedError when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} has no stand-in")

        return missing


def _stand_in_for(name: str, values: dict[str, Any]) -> None:
    module = StandInModule(name)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    vars(module).update(values)
    sys.modules[name] = module
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, module)


def transform_sf(
    sf: torch.Tensor, mn: int, k: int, recipe: Any = None, num_groups: Any = None, **more: Any
) -> torch.Tensor:
    """DeepGEMM's scales: as they are on Hopper; packed, transposed and padded on Blackwell."""
    if ClaimsCuda.capability[0] == 9:
        return sf
    granularity = more.get("gran_k", recipe[-1] if recipe else 128)
    columns = math.ceil(math.ceil(k / granularity) / 4)
    rows = sf.repeat_interleave(-(-mn // sf.shape[1]), 1)[:, :mn]
    made = torch.zeros(sf.shape[0], columns, -(-mn // 4) * 4, dtype=torch.int32)
    for column in range(columns):
        of_column = rows[:, :, min(4 * column, rows.shape[2] - 1)]
        made[:, column, :mn] = of_column.to(torch.float32).view(torch.int32)
    return made.transpose(1, 2)[:, :mn]


def repack(
    b_q_weight: torch.Tensor, size_k: int, size_n: int, num_bits: int, *_: Any, **__: Any
) -> torch.Tensor:
    """Marlin's weights: the same bytes in another order, [K / 16, N * 16 / pack factor]."""
    return shuffle_bytes(b_q_weight).reshape(size_k // 16, size_n * 16 * num_bits // 32)


def repack_all(
    b_q_weight: torch.Tensor, size_k: int, size_n: int, num_bits: int, *_: Any, **__: Any
) -> torch.Tensor:
    return torch.stack([repack(expert, size_k, size_n, num_bits) for expert in b_q_weight])


def quantise_fp8(
    input: torch.Tensor,
    scale: torch.Tensor | None = None,
    num_token_padding: Any = None,
    scale_ub: Any = None,
    use_per_token_if_dynamic: bool = False,
    output: torch.Tensor | None = None,
    group_shape: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    top, wide = torch.finfo(torch.float8_e4m3fn).max, input.float()
    if scale is None:
        if use_per_token_if_dynamic:
            scale = (wide.abs().amax(dim=-1, keepdim=True) / top).reshape(-1, 1)
        else:
            scale = (wide.abs().amax() / top).reshape(1)
    found = (wide / scale).clamp(-top, top).to(torch.float8_e4m3fn)
    if output is not None:
        found = output.copy_(found)
    return found, scale


def encode_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CUTLASS's INT4 weights, and strides of a row for each expert."""
    experts = [e.reshape(-1)[shuffled(e.numel())].reshape(e.shape) for e in weight]
    return torch.stack(experts), torch.tensor([[1, 2]] * weight.shape[0])


OPERATORS: dict[str, Any] = {
    "gptq_marlin_repack": repack,
    "awq_marlin_repack": repack,
    "gptq_marlin_moe_repack": repack_all,
    "awq_marlin_moe_repack": repack_all,
    "scaled_fp8_quant": quantise_fp8,
    "cutlass_pack_scale_fp8": lambda s: s.unsqueeze(-1).expand(*s.shape, 8).reshape(-1),
    "cutlass_encode_and_reorder_int4b_grouped": encode_int4,
    "marlin_int4_fp8_preprocess": lambda q, z=None, inplace=False: q,
    "gptq_shuffle": lambda w, *_: w.copy_(w.reshape(-1)[shuffled(w.numel())].reshape(w.shape)),
}


def _without_line(module: Any, name: str, line: str) -> None:
    """Define a function of vLLM again, without a check that its tensor is a GPU's."""
    source = inspect.getsource(getattr(module, name))
    assert line in source, f"{name} has changed"
    exec(source.replace(line, "pass"), vars(module))


def _replace_torch() -> None:
    torch.accelerator.current_device_index = lambda: "cpu"
    torch.accelerator.empty_cache = torch.cuda.empty_cache = lambda: None
    torch.accelerator.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: "cpu"
    properties = types.SimpleNamespace(
        multi_processor_count=132, name="", major=9, minor=0, gcnArchName="", total_memory=1 << 36
    )
    torch.cuda.get_device_properties = lambda *_: properties
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.compile = lambda f=None, **_: f if f is not None else (lambda g: g)


def _replace_libraries() -> None:
    for name in FLASHINFER_MODULES:
        _stand_in_for(name, FLASHINFER)
    import vllm.utils.deep_gemm as deep_gemm
    import vllm.utils.flashinfer as flashinfer

    for name in dir(flashinfer):
        if name.startswith("has_"):
            setattr(flashinfer, name, lambda *_, **__: True)
    deep_gemm.is_deep_gemm_supported = lambda *_, **__: True
    deep_gemm.is_deep_gemm_e8m0_used = lambda *_, **__: ClaimsCuda.capability[0] == 10
    deep_gemm.transform_sf_into_required_layout = transform_sf
    deep_gemm.get_mk_alignment_for_contiguous_layout = lambda: [128, 128]


def _replace_operators() -> None:
    import vllm._custom_ops as ops
    import vllm.model_executor.layers.quantization.utils.quant_utils as quant_utils

    for name, stand_in in OPERATORS.items():
        setattr(ops, name, stand_in)
    for name in dir(ops):
        if "supports" in name or "supported" in name:
            setattr(ops, name, lambda *_, **__: True)
    on_gpu = 'assert {}.is_cuda, "{} must be on gpu"'
    of = "convert_packed_uint4b8_to_signed_int4_inplace"
    _without_line(quant_utils, of, on_gpu.format("t", "tensor"))
    _without_line(quant_utils, "convert_bf16_scales_to_fp8", on_gpu.format("scales", "scales"))


def _import_all(package: str) -> None:
    """Import what can be imported, so that a replaced choice of kernel is replaced everywhere."""
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        with contextlib.suppress(Exception):
            importlib.import_module(found.name)


vllm.platforms._current_platform = ClaimsCuda()
_replace_torch()
if folder := kernel_source.folder():
    sys.path.insert(0, str(folder))
_replace_libraries()
_replace_operators()
_import_all("vllm.model_executor.layers.quantization")
_import_all("vllm.model_executor.layers.fused_moe.experts")
