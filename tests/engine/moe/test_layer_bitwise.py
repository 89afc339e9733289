# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A MoE layer that runs on views gives the unsharded layer's output, bit by bit.

The layer and its CPU kernel are vLLM's own, the memory files are real, and ranks run in turns.
"""

import pytest
import torch
from layer_group import HIDDEN, NUM_LAYERS, TOP_K, Group, Model, make_checkpoint

from vllm_dwdp.config import FetchMode

pytestmark = pytest.mark.usefixtures("one_process_group")


def assert_same_bits(outputs, expected):
    for output, reference in zip(outputs, expected, strict=True):
        assert output.dtype == reference.dtype
        assert torch.equal(output.view(torch.uint8), reference.view(torch.uint8))


@pytest.mark.parametrize("mode", FetchMode)
@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_experts", "dwdp_size", "num_experts_per_worker"),
    [
        *((e, n, None) for e in (7, 16) for n in (1, 2, 3, 4)),
        (7, 2, 5),
        (7, 3, 4),
        (16, 2, 16),
        (16, 3, 9),
        (16, 4, 6),
    ],
)
def test_output_equals_the_unsharded_layers(
    num_experts, dwdp_size, num_experts_per_worker, dtype, has_bias, mode
):
    checkpoint = make_checkpoint(num_experts, dtype, has_bias)

    def make_model():
        return Model(num_experts, dtype, has_bias)

    stock = make_model().load(checkpoint)
    group = Group(dwdp_size, num_experts_per_worker, checkpoint, make_model)
    x = torch.randn(33, HIDDEN).to(dtype)
    logits = torch.randn(33, num_experts).to(dtype)
    assert set(logits.topk(TOP_K).indices.flatten().tolist()) == set(range(num_experts))
    expected = stock.run(x, logits)
    assert all(output.isfinite().all() and output.any() for output in expected)
    for rank in range(dwdp_size):
        model = group.bind(rank, mode)
        for _ in range(3):
            assert_same_bits(model.run(x, logits), expected)
        assert model.scheduler.counters.tokens == [3 * 33] * NUM_LAYERS
