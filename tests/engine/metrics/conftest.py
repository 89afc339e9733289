# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A server with two ranks that prefetch, for tests of its metrics."""

import json

import pytest
from forms import TWO_RANKS, server_in_dev_mode


@pytest.fixture(scope="module", params=[1, 2], ids=["one front-end", "two front-ends"])
def server(request, demo_model, tmp_path_factory):
    """With one front-end there is a metric for each layer, too."""
    config = {"dwdp": {"fetch": "prefetch", "layer_metrics": request.param == 1}}
    options = (*TWO_RANKS, "--additional-config", json.dumps(config))
    options += ("--api-server-count", str(request.param), "--no-enable-prefix-caching")
    with server_in_dev_mode(demo_model, tmp_path_factory.mktemp("server"), *options) as made:
        yield made
