# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Chooses which tensors of single experts a rank can skip without opening them.

vLLM can skip tensors by the expert number in their names, with one set of numbers for all layers.
But only a model's own loading code knows what a number means: ERNIE-4.5-VL loads experts 64 to 127
of a layer as experts 0 to 63 of another, and a name may belong to a module that isn't a MoE layer.
If a number may mean anything but an expert of its layer, no tensor is skipped.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from safetensors import safe_open

from vllm_dwdp.engine.moe.read_count import NUMBERED
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts


def experts_to_read(
    files: Iterable[str], model: torch.nn.Module, layers: Sequence[DwdpRoutedExperts]
) -> set[int] | None:
    """Numbers of the experts whose tensors the rank reads from safetensors files; None: of all."""
    if any(NUMBERED.search(f".{name}.") for name, _ in model.named_modules()):
        return None
    if max(_numbers(files), default=0) >= min(layer.global_num_experts for layer in layers):
        return None
    return {expert for layer in layers for expert in layer.local_experts}


def _numbers(files: Iterable[str]) -> Iterator[int]:
    for file in files:
        with safe_open(file, "pt") as tensors:
            found = map(NUMBERED.search, tensors.keys())
            yield from (int(match[1]) for match in found if match)
