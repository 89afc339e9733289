# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Reads the metrics that a server shows."""

import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

POLLED_S = 30
"""Within so many seconds what an engine has counted is on `/metrics`, also on a busy machine."""


def samples(server):
    """DWDP's metrics of a server: by name, by the number of the engine and any label of its own."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("dwdp:") and not sample.name.endswith("_created"):
            labels = dict(sample.labels)
            key = (labels.pop("engine"), *(v for k, v in labels.items() if k != "model_name"))
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def wait_for(server, name, key, value):
    """Wait until a metric has this value; returns all of `samples` then."""
    deadline = time.monotonic() + POLLED_S
    while (found := samples(server)).get(name, {}).get(key) != value:
        assert time.monotonic() < deadline, f"{name} {key} isn't {value}: {found}"
        time.sleep(0.5)
    return found
