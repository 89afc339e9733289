# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Every way of vLLM's to write to bound expert weights is refused."""

from types import SimpleNamespace

import pytest
import torch

from vllm_dwdp.engine.read_only import ReadOnlyWeight
from vllm_dwdp.engine.routed_experts import DwdpRoutedExperts
from vllm_dwdp.engine.worker import WRITING_RPCS, DwdpCPUWorker


@pytest.mark.parametrize("name", WRITING_RPCS)
def test_worker_refuses_calls_that_write(name):
    with pytest.raises(ReadOnlyWeight, match=f"'{name}' would write to expert weights"):
        getattr(DwdpCPUWorker, name)(SimpleNamespace())


def test_bound_layer_refuses_to_load():
    layer = SimpleNamespace(is_bound=True, layer_name="layers.0.experts")
    weight = torch.zeros(4)
    with pytest.raises(ReadOnlyWeight, match=r"layers\.0\.experts: .*read-only"):
        DwdpRoutedExperts.weight_loader(layer, weight, weight, "w1", "w1", 0)
