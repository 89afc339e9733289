# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Makes the manifest of a rank's model. Peers compare it before they map each other's memory."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch

from vllm_dwdp._core import MemoryDriver
from vllm_dwdp.engine.moe.fingerprint import describe_value, model_fingerprint
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts
from vllm_dwdp.group.meet.manifest import Manifest, ReplicatedTensor, TensorSchema


def rank_manifest(
    model: torch.nn.Module,
    layers: Sequence[DwdpRoutedExperts],
    model_config: Any,
    driver: MemoryDriver,
) -> Manifest:
    """The manifest of a model that is loaded and not adopted yet. model_config: vLLM's."""
    of_layers = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    return Manifest(
        dwdp_version=importlib.metadata.version("vllm-dwdp"),
        model_fingerprint=model_fingerprint(model, model_config, of_layers),
        dtype=str(model_config.dtype),
        quantization=str(model_config.quantization),
        placement=layers[0].placement.ranges,
        host_experts=layers[0].placement.host_experts,
        memory_kind=driver.kind,
        granularity=driver.granularity,
        tensors=tuple(schema for layer in layers for schema in _schemas(layer)),
        replicated=tuple(one for layer in layers for one in _replicated(layer)),
    )


def _replicated(layer: DwdpRoutedExperts) -> list[ReplicatedTensor]:
    return [
        ReplicatedTensor(layer.layer_name, name, describe_value(tensor))
        for name, tensor in layer.replicated_tensors().items()
    ]


def _schemas(layer: DwdpRoutedExperts) -> list[TensorSchema]:
    whole = [rows.with_experts(layer.global_num_experts) for rows in layer.expert_rows()]
    return [
        TensorSchema(layer.layer_name, rows.name, rows.shape, rows.strides, str(rows.dtype))
        for rows in whole
    ]
