# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a rank says about its kernels when it has bound its experts."""

import logging
from types import SimpleNamespace

from vllm.model_executor.layers.fused_moe.experts.deep_gemm_moe import DeepGemmExperts
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

from vllm_dwdp.engine.worker import start_report


def layer_with(kernel):
    method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=object.__new__(kernel)))
    return SimpleNamespace(quant_method=method)


def test_a_kernel_that_no_gpu_has_run_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr(start_report, "logger", logging.getLogger("heard"))
    layers = [layer_with(kernel) for kernel in (TritonExperts, DeepGemmExperts, DeepGemmExperts)]
    start_report.warn_of_untried_kernels(layers)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "kernel DeepGemmExperts has not been tried over memory that ranks" in record.message
