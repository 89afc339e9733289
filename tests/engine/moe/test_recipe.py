# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A kernel that is made again for all experts is set up as vLLM has set up the first one.

How the kernels of other formats are made again is shown by tests/contract/test_formats.py.
"""

import pytest
import torch
from layer_group import Group, Model, as_rank, make_checkpoint

from vllm_dwdp.config import ConfigError

pytestmark = pytest.mark.usefixtures("one_process_group")
SHAPE = 6, torch.bfloat16, False


def kernel(layer):
    return layer.quant_method.moe_kernel.fused_experts


class ChangedModel(Model):
    """A model whose kernels are changed once vLLM has processed their weights."""

    def __init__(self, change):
        super().__init__(*SHAPE)
        self._change = change

    def load(self, checkpoint):
        super().load(checkpoint)
        for layer in self.experts:
            self._change(layer)
        return self


def bind(change):
    return Group(2, None, make_checkpoint(*SHAPE), lambda: ChangedModel(change)).bind(0).experts[0]


def test_flag_that_processing_sets_is_set_on_all_kernels():
    """vLLM sets this one where zentorch runs the weights, which are in another order then."""

    def change(layer):
        kernel(layer)._use_zentorch = True

    layer = bind(change)
    assert [kernel(reader)._use_zentorch for reader in layer._readers.values()] == [True] * 3


def test_view_that_processing_hangs_on_a_kernel_shows_all_experts():
    def change(layer):
        weights = layer.w2_weight.data
        kernel(layer).second_half = weights.view(torch.int16)[:, weights.shape[1] // 2 :]

    layer = bind(change)
    for reader in layer._readers.values():
        weights = reader.w2_weight.detach()
        expected = weights.view(torch.int16)[:, weights.shape[1] // 2 :]
        shown = kernel(reader).second_half
        assert (shown.shape, shown.stride()) == (expected.shape, expected.stride())
        assert shown.data_ptr() == expected.data_ptr()


def test_layer_without_a_kernel_is_refused():
    def change(layer):
        layer.quant_method.moe_kernel = None

    with pytest.raises(ConfigError, match=r"UnquantizedFusedMoEMethod has no kernel that dwdp"):
        bind(change)


def test_count_of_local_experts_that_a_kernel_keeps_is_named():
    def change(layer):
        kernel(layer).my_num_experts = len(layer.local_experts)

    with pytest.raises(ConfigError, match=r"fused_experts\.my_num_experts' still counts 3 experts"):
        bind(change)


def test_tensor_that_is_no_parameter_stays_with_its_reader():
    """triton_kernels wraps weights in such tensors; settling copies other attributes to readers."""

    def change(layer):
        layer.w2_view = layer.w2_weight.data

    layer = bind(change)
    layer.settle_readers()
    readers = set(layer._readers.values())
    assert len({reader.w2_view.data_ptr() for reader in readers}) == len(readers)
    for reader in readers:
        assert reader.w2_view.data_ptr() == reader.w2_weight.data_ptr()


def test_weights_that_vllm_makes_as_it_loads_them_are_refused_in_host_memory():
    """vLLM's online quantisation builds layers without memory."""
    with as_rank(0, 2, None):
        layer = Model(*SHAPE).experts[0]
    layer._parameters["w13_weight"] = torch.nn.Parameter(layer.w13_weight.to("meta"), False)
    with pytest.raises(
        ConfigError, match=r"host_experts needs weights that are loaded as they are"
    ):
        layer._load_on_host()
