# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The Grafana dashboard in examples/observability: its schema, and every query of its panels."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from forms import post
from support.prometheus import Prometheus

from vllm_dwdp.engine.metrics.series import SERIES

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "observability"
DASHBOARD = json.loads((EXAMPLE / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_dashboard_is_what_grafanas_library_makes_and_reads():
    pytest.importorskip("grafana_foundation_sdk", reason="pip install grafana-foundation-sdk")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    spec = importlib.util.spec_from_file_location("make", EXAMPLE / "make_dashboard.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert json.loads(made.make()) == DASHBOARD
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert read["panels"] == DASHBOARD["panels"]


def test_panels_show_metrics_that_there_are_and_leave_none_out_but_those_by_layer():
    shown = set(re.findall(r"dwdp:\w+", " ".join(QUERIES)))
    known = {series.exposed_name for series in SERIES if not series.is_by_layer}
    assert shown <= known
    assert known - shown == {"dwdp:kv_tokens_gained"}, "its two parts are shown"


def test_example_settings_scrape_vllms_own_port():
    (job,) = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]


@pytest.mark.whole
def test_every_query_gives_data_when_prometheus_scrapes_a_server(server, tmp_path):
    if shutil.which("prometheus") is None:
        pytest.skip("apt-get install prometheus")
    prometheus = Prometheus(tmp_path, server.port)
    try:
        for query in QUERIES:
            with post(server, "/v1/completions", {"prompt": "It is a truth", "max_tokens": 2}):
                found = prometheus.wait_for(filled_in(query))
            assert {one["metric"].get("engine", "0") for one in found} <= {"0", "1"}
    finally:
        prometheus.stop()


def filled_in(query):
    """The query as Grafana sends it, for all models."""
    return query.replace("$__rate_interval", "20s").replace("$model_name", ".*")
