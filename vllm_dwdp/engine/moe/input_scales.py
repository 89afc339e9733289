# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Gives each layer the activation scales that stock vLLM would give it.

* vLLM reduces a scale per expert to one per layer, the largest of the experts that a rank loads
  (`process_fp8_input_tensor_strategy_moe`); of global scales, by which it divides, the smallest. It
  derives other tensors from that one. A dwdp layer runs on all experts, so it needs that of all.
* A rank sees the scales of all experts in the checkpoint. So before vLLM processes the layer, every
  local expert gets the one of all, and whatever vLLM derives from it is right.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

DUMMY_SCALE = 1.0
"""The scale of every expert if weights are made up: ranks that draw their own would differ."""


class InputScales:
    """The activation scales of one layer's experts, by the names of their parameters.

    num_experts: those of all ranks.
    """

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._unloaded: dict[str, torch.Tensor] = {}
        self._scales: dict[str, dict[int, torch.nn.Parameter]] = {}

    def load(
        self,
        name: str,
        parameter: torch.nn.Parameter,
        expert: int,
        load_as_vllm: Callable[[torch.nn.Parameter], object],
    ) -> None:
        """Load a scale of an expert, local or not.

        load_as_vllm: loads it to the first row of a parameter like the one given.
        """
        empty = self._unloaded.setdefault(name, parameter.data[:1].clone())
        scales = self._scales.setdefault(name, {})
        if expert not in scales:
            scales[expert] = torch.nn.Parameter(empty.clone(), requires_grad=False)
            vars(scales[expert]).update(vars(parameter))
        load_as_vllm(scales[expert])

    def complete(self, parameters: Mapping[str, torch.nn.Parameter | None]) -> None:
        """Give every local expert the scale that the layer has in stock vLLM; forget the others.

        An expert without one in the checkpoint has the value from which vLLM starts. Llama 4 has
        one scale for all of a layer's experts, which vLLM loads to the first.
        """
        for name, scales in self._scales.items():
            missing = [self._unloaded[name]] * (self._num_experts - len(scales))
            of_experts = torch.cat([scale.data for scale in scales.values()] + missing)
            of_layer = of_experts.amin(0) if "global" in name else of_experts.amax(0)
            parameter = parameters[name]
            assert parameter is not None, "the scales were loaded to it"
            parameter.data.copy_(of_layer.expand_as(parameter))
        self._scales.clear()


def scale_of_layer(names: Iterable[str], method: Any) -> str | None:
    """The name of a parameter if it has activation scales that vLLM reduces to one for a layer.

    names: all that the parameter has. method: the layer's quantisation method.
    """
    name = next(filter(is_input_scale, names), None)
    backend = getattr(method, "nvfp4_backend", None)
    if name is None or getattr(backend, "name", "") == "VLLM_CUTLASS":  # it keeps one per expert
        return None
    # vLLM itself loads such scales of all experts on every rank.
    is_whole = getattr(method, "use_global_sf", False) and "input_scale" in name
    return None if is_whole else name


def is_input_scale(name: str) -> bool:
    """Whether a parameter has activation scales, as w13_input_scale and w2_input_global_scale."""
    return "input" in name and "scale" in name


def fill_dummy_scales(parameters: Mapping[str, torch.nn.Parameter | None]) -> None:
    """Give layers whose weights are made up the same scales on every rank."""
    for name, parameter in parameters.items():
        if parameter is not None and is_input_scale(name):
            parameter.data.fill_(DUMMY_SCALE)
