# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares a rank's layer, once it is bound, with the whole layer of stock vLLM."""

from typing import Any

import torch
from reach import equal, reached
from sharing import slot_reader

from vllm_dwdp.config import FetchMode
from vllm_dwdp.engine.moe.fingerprint import describe_value


def differences(layer: Any, whole: Any) -> set[str]:
    tensors, values = reached(layer)
    expected_tensors, expected_values = reached(whole)
    found = {
        path
        for path, tensor in expected_tensors.items()
        if path not in tensors or not equal(tensors[path], tensor)
    }
    found |= {
        f"{path} is {values[path]!r}, not {value!r}"
        for path, value in expected_values.items()
        if path in values and values[path] != value
    }
    return found


def unlike(layers: list[Any]) -> set[str]:
    """Tensors that ranks don't share and that are different; dwdp refuses such ranks."""
    of_ranks = [
        {name: describe_value(tensor) for name, tensor in layer.replicated_tensors().items()}
        for layer in layers
    ]
    return {name for name, value in of_ranks[0].items() if of_ranks[1].get(name) != value}


def reads_in_place(layer: Any) -> set[str]:
    """What the reader on a slot still has of the views in place, by path."""
    rows = layer.rows
    direct = layer._readers[FetchMode.DIRECT].tensors_of(rows)
    in_place = {tensor.untyped_storage().data_ptr() for tensor in direct}
    found = reached(slot_reader(layer))[0]
    return {p for p, t in found.items() if t.numel() and t.untyped_storage().data_ptr() in in_place}


def same_scales(layer: Any, whole: Any) -> bool:
    """Whether two layers have the same products of block scales and global scales.

    Marlin's NVFP4 weights have both. vLLM multiplies one by a power of two, which depends on the
    experts that it processes, and divides the other.
    """
    of_marlin = "MarlinExperts" in type(whole.quant_method.moe_kernel.fused_experts).__name__
    if not of_marlin or not hasattr(whole, "w13_weight_scale_2"):
        return False
    return all(torch.equal(scales(layer, stem), scales(whole, stem)) for stem in ("w13", "w2"))


def scales(layer: Any, stem: str) -> torch.Tensor:
    bits = getattr(layer, f"{stem}_weight_scale").detach().clone().contiguous().view(torch.uint8)
    blocks = (bits.to(torch.int16) << 7).view(torch.float16).float()  # 5 bits exponent, 3 mantissa
    return blocks * getattr(layer, f"{stem}_weight_scale_2").detach().float().view(-1, 1, 1)
