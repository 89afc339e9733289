# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Reads the formats of a checkpoint's weights, out of config.json or ModelOpt's file beside it."""

from collections.abc import Mapping
from typing import Any

from vllm_dwdp.planning.config_fields import ConfigFields, read_json
from vllm_dwdp.planning.formats import (
    FORMATS,
    WeightFormat,
    format_named,
    is_quantised,
    quantised_format,
)
from vllm_dwdp.planning.model import Formats

_MODELOPT = "hf_quant_config.json"
_QUERY = "self_attn.q_proj"


def read_formats(
    fields: ConfigFields, values: Mapping[str, Any], expert_format: str | None
) -> Formats:
    """expert_format, if given, is the format of the experts whatever the checkpoint says.

    Raises PlanError for a quantisation that plan doesn't know.
    """
    quantization = _quantization(fields, values)
    plain = FORMATS["fp32"] if _dtype(fields.values) == "float32" else FORMATS["bf16"]
    given = format_named(expert_format) if expert_format else None
    if not quantization:
        return Formats(given or plain, plain, plain, plain)
    stated = given or quantised_format(quantization)

    def of(module: str) -> WeightFormat:
        layer = f"model.layers.{fields.number('num_hidden_layers', default=2) // 2}"
        return stated if is_quantised(f"{layer}.{module}", quantization) else plain

    attention_in = of("self_attn.q_b_proj" if fields.values.get("q_lora_rank") else _QUERY)
    kv_bytes = 1 if "fp8" in _kv_format(quantization) else 2
    mlp = of("mlp.shared_experts.down_proj")
    return Formats(stated, attention_in, of("self_attn.o_proj"), mlp, kv_bytes)


def _quantization(fields: ConfigFields, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """From config.json, or from the file that ModelOpt writes beside it."""
    found = fields.mapping("quantization_config") or values.get("quantization_config")
    beside = fields.path.with_name(_MODELOPT)
    if not found and beside.is_file():
        found = read_json(beside).get("quantization")
    return found if isinstance(found, dict) else {}


def _kv_format(quantization: Mapping[str, Any]) -> str:
    scheme = quantization.get("kv_cache_scheme")
    bits = scheme.get("num_bits") if isinstance(scheme, dict) else None
    return "fp8" if bits == 8 else str(quantization.get("kv_cache_quant_algo")).lower()


def _dtype(values: Mapping[str, Any]) -> str:
    return str(values.get("dtype") or values.get("torch_dtype"))
