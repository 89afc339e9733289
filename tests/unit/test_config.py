# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
import pytest

from vllm_dwdp.config import ConfigError, DwdpConfig, parse_endpoint, usable_slots
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.limits import LimitError, check_map_budget, num_maps_at_least

PAGE = 4096


def test_defaults_need_no_section():
    assert DwdpConfig.parse(None) == DwdpConfig() == DwdpConfig.parse({})


def test_copies_are_not_batched_unless_asked_for():
    assert not DwdpConfig().batched_copies


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ([], "JSON object"),
        ("dwdp_size=2", "JSON object"),
        ({"dwdp_sise": 2}, "valid options"),
        ({"dwdp_size": 0}, "dwdp_size"),
        ({"dwdp_size": "2"}, "dwdp_size"),
        ({"dwdp_size": True}, "dwdp_size"),
        ({"num_experts_per_worker": -1}, "num_experts_per_worker"),
        ({"num_experts_per_worker": 1.5}, "num_experts_per_worker"),
        ({"fetch": "push"}, "one of .*auto.*direct.*prefetch.*selective"),
        ({"num_slots": 0}, "num_slots"),
        ({"num_slots": None}, "num_slots"),
        ({"slice_bytes": 4095}, "slice_bytes must be at least a page of 4096"),
        ({"slice_bytes": "1MiB"}, "slice_bytes"),
        ({"batched_copies": "no"}, "batched_copies must be true or false"),
        ({"require_secret": 0}, "require_secret must be true or false"),
        ({"copy_threads": 0}, "copy_threads"),
        ({"min_tokens_per_step": 0}, "min_tokens_per_step must be a whole number"),
        ({"min_tokens_per_step": "most"}, "min_tokens_per_step"),
        ({"max_wait_ms": 5}, "no effect without dwdp.min_tokens_per_step"),
        ({"min_tokens_per_step": 1, "max_wait_ms": 0}, "between 0 and 600000, got 0"),
        ({"min_tokens_per_step": "auto", "max_wait_ms": True}, "max_wait_ms must be"),
        ({"link_gb_per_s": 0}, "link_gb_per_s"),
        ({"link_gb_per_s": float("inf")}, "link_gb_per_s"),
        ({"link_gb_per_s": 1e-320}, "from 1e-06 to"),
        ({"compute_us_per_token": 1e-320}, "from 1e-06 to"),
        ({"compute_us_per_token": float("nan")}, "compute_us_per_token"),
        ({"compute_us_per_token": -1}, "compute_us_per_token"),
        ({"compute_us_per_token": True}, "compute_us_per_token"),
        ({"fetch": None}, "fetch"),
        ({"rendezvous": "localhost"}, "rendezvous"),
        ({"rendezvous": "localhost:99999"}, "rendezvous"),
        ({"rendezvous": 29500}, "rendezvous"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": "soon"}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_wrong_section_is_refused_with_the_option_named(section, word):
    with pytest.raises(ConfigError, match=word):
        DwdpConfig.parse(section)


def test_endpoint_takes_ipv6_in_brackets():
    assert parse_endpoint("[::1]:29500") == ("::1", 29500)


def test_endpoint_without_a_host_in_its_brackets_is_refused():
    with pytest.raises(ConfigError, match="must be 'host:port', got '\\[\\]:80'"):
        parse_endpoint("[]:80")


@pytest.mark.parametrize(("num_slots", "num_layers", "usable"), [(2, 1, 1), (2, 6, 2), (6, 6, 6)])
def test_slots_are_no_more_than_layers(num_slots, num_layers, usable):
    assert usable_slots(num_slots, num_layers) == usable


@pytest.mark.parametrize(("num_slots", "num_layers"), [(3, 1), (7, 6)])
def test_more_slots_than_layers_are_refused(num_slots, num_layers):
    with pytest.raises(ConfigError, match=f"at most the model's {num_layers} MoE layers, got"):
        usable_slots(num_slots, num_layers)


def test_map_budget_names_the_sysctl():
    with pytest.raises(LimitError, match=r"sysctl -w vm\.max_map_count"):
        check_map_budget(60_000, max_map_count=65_530)
    check_map_budget(10_000, max_map_count=65_530)


@pytest.mark.parametrize("owned", [None, 5])
def test_views_of_whole_pages_take_the_fewest_maps(owned):
    placement = Placement.make(num_experts=12, dwdp_size=3, num_experts_per_worker=owned)
    layout = TensorLayout(ExpertTensor("w", 8 * PAGE), placement, PAGE)
    odd = TensorLayout(ExpertTensor("w", 8 * PAGE + 8), placement, PAGE)
    least = num_maps_at_least(placement, num_layers=4, tensors_per_layer=2)
    assert least == 4 * 2 * (len(layout.blocks) + len(layout.private_spans))
    assert least < 4 * 2 * (len(odd.blocks) + len(odd.private_spans))
