# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Layers of AWQ and GPTQ with vLLM's kernel for CPUs, which it chooses itself only on some CPUs."""

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import (
    WNA16MoEBackend,
    backend_to_kernel_cls,
)
from vllm.model_executor.layers.quantization import auto_awq, auto_gptq


def force_cpus_kernel(monkeypatch):
    (kernel,) = backend_to_kernel_cls(WNA16MoEBackend.CPU)
    for method in (auto_awq, auto_gptq):
        choice = WNA16MoEBackend.CPU, kernel
        monkeypatch.setattr(method, "select_wna16_moe_backend", lambda *_, c=choice, **__: c)


def process(layers):
    """Let vLLM process the layers; returns the bytes of the rank's experts, as its kernel has them.

    vLLM's kernel for CPUs keeps packed weights and zero points in more bytes than a checkpoint.
    """
    with set_current_vllm_config(VllmConfig()):
        for layer in layers:
            layer.quant_method.process_weights_after_loading(layer)
    tensors = [(layer, rows) for layer in layers for rows in layer.expert_rows()]
    return sum(rows.row_bytes * len(layer.local_experts) for layer, rows in tensors)
