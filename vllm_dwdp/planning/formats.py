# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Formats of weights: how many bytes a parameter takes, and in which precision it is multiplied."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_dwdp.planning.errors import PlanError


@dataclass(frozen=True)
class WeightFormat:
    """bytes_per_param: with scales. precision: of the product, where the hardware has it."""

    name: str
    bytes_per_param: float
    precision: str


FORMATS = {
    made.name: made
    for made in (
        WeightFormat("bf16", 2.0, "bf16"),
        WeightFormat("fp32", 4.0, "bf16"),
        WeightFormat("fp8", 1.0 + 4 / 128**2, "fp8"),  # a scale of 4 bytes for 128 x 128
        WeightFormat("int8", 1.0, "fp8"),
        WeightFormat("nvfp4", 0.5 + 1 / 16, "fp4"),  # a scale of 1 byte for 16
        WeightFormat("mxfp4", 0.5 + 1 / 32, "fp8"),  # a scale of 1 byte for 32; FP8 activations
        WeightFormat("int4", 0.5 + 2.5 / 128, "bf16"),  # scale and zero point for 128
    )
}

_METHODS = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "gpt_oss_mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
    "modelopt_fp4": "nvfp4",
    "awq": "int4",
    "auto-round": "int4",
}

_IGNORED = ("ignore", "ignored_layers", "exclude_modules", "modules_to_not_convert")


def format_named(name: str) -> WeightFormat:
    """Raises PlanError for a name that isn't in FORMATS."""
    if name not in FORMATS:
        raise PlanError(
            f"expected a format of weights out of {', '.join(FORMATS)}, got {name!r}; give one of "
            "them."
        )
    return FORMATS[name]


def quantised_format(quantization: Mapping[str, Any]) -> WeightFormat:
    """The format that `quantization_config` of a config.json, or ModelOpt's `quantization`, names.

    Raises PlanError if it names none that this module knows.
    """
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo", "")).lower()
    found = _METHODS.get(algorithm) or _METHODS.get(method) or _by_bits(quantization)
    if found is None:
        raise PlanError(
            f"expected a quantisation that plan knows, got quant_method {method!r}; say the format "
            f"of the experts with --expert-format, one of {', '.join(FORMATS)}."
        )
    return FORMATS[found]


def _by_bits(quantization: Mapping[str, Any]) -> str | None:
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        weights = next(iter(groups.values())).get("weights") or {}
        return _of_bits(weights.get("num_bits"), str(weights.get("type")), quantization)
    return _of_bits(quantization.get("bits"), "int", quantization)


def _of_bits(bits: Any, kind: str, quantization: Mapping[str, Any]) -> str | None:
    if (bits, kind) == (4, "float"):
        return "mxfp4" if "mxfp4" in str(quantization.get("format")) else "nvfp4"
    return {(8, "float"): "fp8", (8, "int"): "int8", (4, "int"): "int4"}.get((bits, kind))


def is_quantised(module: str, quantization: Mapping[str, Any]) -> bool:
    """Whether the module of this dotted name is quantised: no list of exceptions names it."""
    patterns = [p for key in _IGNORED for p in _strings(quantization.get(key))]
    return not any(_matches(module, pattern) for pattern in patterns)


def _strings(found: object) -> Iterable[str]:
    return [p for p in found if isinstance(p, str)] if isinstance(found, list) else ()


def _matches(module: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return any(fnmatch.fnmatchcase(module, p) for p in (pattern, f"{pattern}.*", f"*.{pattern}"))
