# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What the metrics say, without an engine: how they follow from statistics, and their page."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from vllm_dwdp.engine.metrics.exporter import EngineExporter
from vllm_dwdp.engine.metrics.report import pending_prefill_tokens
from vllm_dwdp.engine.metrics.series import SERIES, values_of

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
STATS = {
    "bytes_fetched": {"prefetch": [0, 30], "selective": [5, 0]},
    "exposed_seconds": [0.5, 0.25],
    "steps": {"direct": 2, "prefetch": 3, "selective": 1},
    "expert_bytes_owned": 100,
    "expert_bytes_private": 10,
    "expert_bytes_extra": 1,
    "expert_bytes_from_peers": 90,
    "slot_bytes": 40,
    "dwdp_size": 2,
    "members_alive": 1,
    "pending_prefill_tokens": 7,
    "kv_tokens": 1000,
    "kv_with_all_experts": 600,
    "kv_with_expert_parallelism": 1100,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bytes_fetched", {"prefetch": 30, "selective": 5}),
        ("exposed_wait_seconds", {"": 0.75}),
        ("steps", {"direct": 2, "prefetch": 3, "selective": 1}),
        ("resident_expert_bytes", {"": 111}),
        ("kv_tokens", {"shared": 1000, "whole": 600, "expert_parallel": 1100}),
        ("kv_tokens_gained", {"": 400}),
        ("group_members_alive", {"": 1}),
    ],
)
def test_values_follow_from_the_statistics_of_a_rank(name, expected):
    assert values_of(STATS, by_layer=False)[name] == expected


def test_layers_are_there_on_request_only():
    name = "layer_exposed_wait_seconds"
    assert name not in values_of(STATS, by_layer=False)
    assert values_of(STATS, by_layer=True)[name] == {"0": 0.5, "1": 0.25}


def test_a_rank_without_a_kv_cache_has_no_tokens_of_one():
    without = {key: value for key, value in STATS.items() if not key.startswith("kv_")}
    found = values_of(without, by_layer=False)
    assert found["kv_tokens"] == found["kv_tokens_gained"] == {}


def exposed(name, engine, **labels):
    return REGISTRY.get_sample_value(name, {"model_name": "m", "engine": engine, **labels})


def test_counters_grow_on_when_a_rank_restarts_and_gauges_are_replaced():
    exporter = EngineExporter("m", 3)
    for steps, alive in ((5.0, 2.0), (9.0, 2.0), (1.0, 1.0)):
        exporter.set({"steps": {"direct": steps}, "group_members_alive": {"": alive}})
    assert exposed("dwdp:steps_total", "3", mode="direct") == 10
    assert exposed("dwdp:group_members_alive", "3") == 1


def test_engines_of_one_front_end_are_told_apart():
    for engine in (4, 5):
        EngineExporter("m", engine).set({"slot_bytes": {"": 10.0 * engine}})
    assert [exposed("dwdp:slot_bytes", engine) for engine in ("4", "5")] == [40, 50]


def test_pending_tokens_are_those_of_prompts_that_are_not_computed():
    counts = [(100, 0), (100, 60), (100, 100), (100, 140)]
    requests = {
        str(number): SimpleNamespace(num_prompt_tokens=prompt, num_computed_tokens=computed)
        for number, (prompt, computed) in enumerate(counts)
    }
    assert pending_prefill_tokens(SimpleNamespace(requests=requests)) == 140


def test_every_series_is_in_the_table_of_the_page_and_no_other():
    rows = [
        f"| `{series.exposed_name}` | {'counter' if series.is_counter else 'gauge'} | "
        f"{f'`{series.label}`' if series.label else ''} | {series.help} |"
        for series in SERIES
    ]
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| `dwdp:")]
    assert table == [row.replace("|  |", "| |") for row in rows]
