# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Builds small layers of each kind of MoE layer that dwdp's tests have not tried.

A model has many layers of one kind; two small ones are built for all of them. They are freed at
once, only the forms of their tensors are kept.
"""

import gc
import time
from collections.abc import Hashable
from typing import Any

from vllm.logger import init_logger

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.kernel.growth import FEW, MORE, AxisByGrowth, Forms, Growth, forms
from vllm_dwdp.engine.moe.kernel.holders import held_tensors
from vllm_dwdp.engine.moe.kernel.tried_pairs import pair

logger = init_logger("vllm.dwdp")


class UntriedKinds:
    """The kinds of layers of one model, with the forms of the tensors of two small layers each."""

    def __init__(self) -> None:
        self._growth: dict[Hashable, Growth] = {}

    def find_axis(self, layer: Any) -> AxisByGrowth:
        """What finds the axes of experts of a processed layer.

        Raises ConfigError if vLLM can't build small layers of its kind.
        """
        kind = _kind(layer)
        if kind not in self._growth:
            self._growth[kind] = _grow(layer)
        growth, num_local = self._growth[kind], len(layer.local_experts)
        return AxisByGrowth(layer.layer_name, _called(layer), growth, num_local)


def _kind(layer: Any) -> Hashable:
    """Equal for layers with the same classes and with tensors of the same forms."""
    of_tensors = frozenset(forms(held_tensors(layer)).items())
    return type(layer), *pair(layer), layer.params_dtype, of_tensors


def _called(layer: Any) -> str:
    method, kernel = pair(layer)
    return f"{method} with the kernel {kernel}"


def _grow(layer: Any) -> Growth:
    start = time.perf_counter()
    try:
        few, more = (_forms_of_small_layer(layer, num) for num in (FEW, MORE))
    except Exception as error:
        raise ConfigError(
            f"{layer.layer_name}: dwdp's tests have not tried {_called(layer)}, so dwdp builds "
            f"layers with {FEW} and {MORE} experts to see which tensors have a row for each "
            f"expert. That failed with {type(error).__name__}: {error}; choose another kernel with "
            "--moe-backend, or serve this model without dwdp."
        ) from error
    finally:
        gc.collect()  # a layer and the loaders of its parameters refer to each other
    logger.info(
        "%s: dwdp's tests have not tried %s; layers with %d and %d experts, built in %.2f s, tell "
        "which tensors have a row for each expert.",
        layer.layer_name,
        _called(layer),
        FEW,
        MORE,
        time.perf_counter() - start,
    )
    return Growth(few, more)


def _forms_of_small_layer(layer: Any, num_experts: int) -> Forms:
    small = layer.plan.small_layer(layer.stock_class(), num_experts, layer._loaded_expert_biases)
    return forms(held_tensors(small))
