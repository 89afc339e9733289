# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Gives each layer the activation scales that stock vLLM would give it.

* vLLM reduces a scale per expert to one per layer, the largest of the experts that a rank loads
  (`process_fp8_input_tensor_strategy_moe`), and derives other tensors from it. A dwdp layer runs on
  all experts, so it needs the largest of all.
* A rank sees the scales of all experts in the checkpoint. So before vLLM processes the layer, every
  local expert gets the largest, and whatever vLLM derives from it is right.
"""

from collections.abc import Callable, Mapping

import torch

OF_ALL = 1.0
"""The scale of every expert if weights are made up: ranks that draw their own would differ."""


class InputScales:
    """The activation scales of one layer's experts, by the names of their parameters.

    num_experts: those of all ranks.
    """

    def __init__(self, layer_name: str, num_experts: int) -> None:
        self._layer_name = layer_name
        self._num_experts = num_experts
        self._empty_rows: dict[str, torch.Tensor] = {}
        self._rows: dict[str, dict[int, torch.nn.Parameter]] = {}

    def note(
        self,
        name: str,
        parameter: torch.nn.Parameter,
        expert: int,
        load: Callable[[torch.nn.Parameter], object],
    ) -> None:
        """Note a scale of an expert, local or not.

        load: loads it into the first row of a parameter like the one given, as vLLM would.
        """
        empty = self._empty_rows.setdefault(name, parameter.data[:1].clone())
        rows = self._rows.setdefault(name, {})
        if expert not in rows:
            rows[expert] = torch.nn.Parameter(empty.clone(), requires_grad=False)
            vars(rows[expert]).update(vars(parameter))
        load(rows[expert])

    def complete(self, parameters: Mapping[str, torch.nn.Parameter | None]) -> None:
        """Give every local expert the scale that the layer has in stock vLLM; forget the others.

        Raises ValueError if the checkpoint lacks an expert's scale.
        """
        for name, rows in self._rows.items():
            if missing := sorted(set(range(self._num_experts)) - set(rows)):
                raise ValueError(
                    f"{self._layer_name}: expected {name} of {self._num_experts} experts in the "
                    f"checkpoint, {missing} are missing; use a complete checkpoint."
                )
            scales = torch.cat([rows[expert].data for expert in sorted(rows)])
            # vLLM divides by a global scale, so the smallest one is the largest range.
            of_layer = scales.amin(0) if "global" in name else scales.amax(0)
            parameter = parameters[name]
            assert parameter is not None, "the scales were loaded to it"
            parameter.data.copy_(of_layer.expand_as(parameter))
        self._rows.clear()


def is_input_scale(name: str) -> bool:
    return "input" in name and "scale" in name


def make_up(parameters: Mapping[str, torch.nn.Parameter | None]) -> None:
    """Give layers whose weights are made up the same scales on every rank."""
    for name, parameter in parameters.items():
        if parameter is not None and is_input_scale(name):
            parameter.data.fill_(OF_ALL)
