# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM takes the options of the engines of host_throughput.py, as far as a CPU can show."""

import dataclasses

import host_throughput
import pytest
from vllm.engine.arg_utils import EngineArgs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint with the attention and lengths of the measured model, and few, small experts."""
    small = dataclasses.replace(host_throughput.MODEL, num_layers=1, num_experts=8, expert_size=64)
    return small.write(tmp_path_factory.mktemp("models") / "random")


@pytest.mark.parametrize("way", host_throughput.WAYS)
def test_vllm_takes_the_options_of_every_engine(way, model):
    given = host_throughput.options(model) | host_throughput.WAYS[way]
    args = EngineArgs(**given)
    config = args.create_model_config()
    assert config.max_model_len >= host_throughput.PROMPT_TOKENS
    assert args.max_num_seqs * host_throughput.PROMPT_TOKENS > host_throughput.STEP_TOKENS


def test_ways_keep_equal_shares_in_host_memory():
    layers, experts = host_throughput.MODEL.num_layers, host_throughput.MODEL.num_experts
    for share in ("a quarter", "half"):
        ways = [given for way, given in host_throughput.WAYS.items() if way.startswith(share)]
        (dwdp,) = [g["additional_config"]["dwdp"] for g in ways if "additional_config" in g]
        (offloaded,) = [g for g in ways if "offload_group_size" in g]
        num_offloaded = layers // offloaded["offload_group_size"] * experts
        assert num_offloaded == layers * dwdp["host_experts"]


def test_dwdp_is_compared_with_stock_vllm_and_with_the_offloader_of_the_same_share():
    names = list(host_throughput.WAYS)
    found = {
        name: [other for other in names if host_throughput.is_reference(other, name)]
        for name in names
    }
    stock, quarter, quarter_offloaded, half, half_offloaded = names
    assert found[stock] == []
    assert found[quarter] == [stock, quarter_offloaded]
    assert found[half] == [stock, half_offloaded]
    assert found[quarter_offloaded] == found[half_offloaded] == [stock]
