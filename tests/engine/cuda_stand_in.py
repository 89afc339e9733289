# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets engines on the CPU manage their memory through the fake CUDA driver."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PLUGIN = (TESTS / "engine" / "fake_gpu_plugin", TESTS / "engine", TESTS)
"""The import path of the plugin, of its module, and of what the module imports."""

CUDA_STAND_IN = {
    "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, PLUGIN), os.environ.get("PYTHONPATH")])),
    "FAKE_CUDA_RUN_AT_ONCE": "1",
    "FAKE_CUDA_GRANULARITY": "4096",
}
"""The environment variables of such an engine. Work on the fake GPU runs when it is submitted."""
