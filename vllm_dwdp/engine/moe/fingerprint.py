# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A fingerprint of the model that every rank holds a copy of: config and replicated weights.

Two checkpoints of the same shape differ in their attention, norm and router weights; a digest of
their edges tells them apart without reading all of it.
"""

import hashlib
import json
from typing import Any

import torch

EDGE_BYTES = 4096


def model_fingerprint(model: torch.nn.Module, model_config: Any, expert_params: set[int]) -> str:
    """Hex digest; `expert_params` are the ids of the parameters that ranks don't share."""
    digest = hashlib.blake2b(digest_size=16)
    config = model_config.hf_config.to_dict()
    config.pop("_name_or_path", None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        if id(parameter) not in expert_params:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(_edges(parameter.detach()))
    return digest.hexdigest()


def _edges(tensor: torch.Tensor) -> bytes:
    flat = tensor.flatten()
    count = max(1, EDGE_BYTES // max(1, tensor.element_size()))
    both = torch.cat([flat[:count], flat[-count:]]).contiguous().cpu()
    return both.view(torch.uint8).numpy().tobytes()
