# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a rank says about its kernels when it has bound its experts."""

import logging
from types import SimpleNamespace

from vllm.model_executor.layers.fused_moe.experts.deep_gemm_moe import DeepGemmExperts
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

from vllm_dwdp.engine.worker.start_report import warn_of_untried_kernels


def layer_with(kernel):
    method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=object.__new__(kernel)))
    return SimpleNamespace(quant_method=method)


def test_a_kernel_that_no_gpu_has_run_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    layers = [layer_with(kernel) for kernel in (TritonExperts, DeepGemmExperts, DeepGemmExperts)]
    warn_of_untried_kernels(layers)
    (text,) = {record.message for record in caplog.records if record.levelname == "WARNING"}
    assert "kernel DeepGemmExperts has not been tried over memory that ranks" in text
