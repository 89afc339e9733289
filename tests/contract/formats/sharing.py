# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Shares the experts of ranks' layers without memory of a group: their bytes are put together."""

import gc
from collections.abc import Sequence
from typing import Any

import torch
from layers import NUM_EXPERTS
from torch.multiprocessing.reductions import StorageWeakRef
from vllm.config import set_current_vllm_config

from vllm_dwdp.config import FetchMode
from vllm_dwdp.engine.moe.kernel.expert_rows import ExpertRows


def share(layers: list[Any]) -> list[str]:
    """Bind each rank's layer to the rows of all ranks; returns the names of what is shared."""
    all_rows = [layer.expert_rows() for layer in layers]
    shared = []
    whole = []
    for rows in zip(*all_rows, strict=True):
        assert len({(one.name, one.row_bytes) for one in rows}) == 1, [one.name for one in rows]
        parts = [
            bytes_of(layer.tensors_of([one])[0], one)
            for layer, one in zip(layers, rows, strict=True)
        ]
        whole.append(torch.cat(parts))
        shared.append(rows[0].name)
    for layer, rows in zip(layers, all_rows, strict=True):
        if kept := release(layer, rows):
            raise AssertionError(f"a released layer keeps the memory of {kept}")
        wholes = zip(all_experts(rows), whole, strict=True)
        views = [one.over(data.clone()) for one, data in wholes]
        with set_current_vllm_config(layer.probe_config):
            layer.bind(views)
    return shared


def release(layer: Any, rows: Any) -> list[str]:
    """Release a layer's local experts; returns the names of those whose memory stays."""
    memory = {
        one.name: StorageWeakRef(tensor.untyped_storage())
        for one, tensor in zip(rows, layer.tensors_of(rows), strict=True)
    }
    layer.release(rows)
    if not all(storage.expired() for storage in memory.values()):
        gc.collect()
    return [name for name, storage in memory.items() if not storage.expired()]


def bind_slot(layer: Any) -> None:
    """Bind another reader to other views of the same bytes, as to a slot, and settle both."""
    views = [
        whole.over(bytes_of(view, whole))
        for whole, view in zip(all_experts(layer.rows), layer.tensors_of(layer.rows), strict=True)
    ]
    with set_current_vllm_config(layer.probe_config):
        layer.bind_slot(views)
    layer.settle_readers()


def slot_reader(layer: Any) -> Any:
    return layer._readers[FetchMode.PREFETCH]


def all_experts(rows: Sequence[ExpertRows]) -> list[ExpertRows]:
    return [one.with_experts(NUM_EXPERTS) for one in rows]


def bytes_of(tensor: torch.Tensor, rows: Any) -> torch.Tensor:
    start = tensor.storage_offset() * tensor.itemsize
    size = rows.num_experts * rows.row_bytes
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    flat.set_(tensor.untyped_storage(), start, (size,), (1,))
    return flat.clone()
