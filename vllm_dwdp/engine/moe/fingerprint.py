# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A fingerprint of what all ranks must have alike: the model's config and its replicated weights.

Two checkpoints of the same shapes differ in their attention, norm and router weights. A digest of
both ends of each of these tensors tells the checkpoints apart without reading the rest.
"""

import hashlib
import json
from typing import Any

import torch

EDGE_BYTES = 4096


def model_fingerprint(model: torch.nn.Module, model_config: Any, expert_params: set[int]) -> str:
    """Hex digest of the Hugging Face config, without its path, and of both ends of parameters.

    expert_params: `id()` of the parameters to leave out. model_config: vLLM's ModelConfig.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = model_config.hf_config.to_dict()
    config.pop("_name_or_path", None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        if id(parameter) not in expert_params:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(_edges(parameter.detach()))
    return digest.hexdigest()


def describe_value(tensor: torch.Tensor) -> str:
    """The number that a tensor holds, or a digest of all of its bytes."""
    if tensor.numel() == 1:
        return str(tensor.item())
    data = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy().tobytes(), digest_size=8).hexdigest()


def _edges(tensor: torch.Tensor) -> bytes:
    flat = tensor.flatten()
    count = max(1, EDGE_BYTES // max(1, tensor.element_size()))
    both = torch.cat([flat[:count], flat[-count:]]).contiguous().cpu()
    return both.view(torch.uint8).numpy().tobytes()
