# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The CUDA driver's calls on host memory, in the order of the calls, for engines on the CPU."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PLUGIN = (TESTS / "engine" / "fake_gpu_plugin", TESTS / "engine", TESTS)
"""Where Python finds the plugin, its module, and what that imports."""

CUDA_STAND_IN = {
    "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, PLUGIN), os.environ.get("PYTHONPATH")])),
    "FAKE_CUDA_RUN_AT_ONCE": "1",
    "FAKE_CUDA_GRANULARITY": "4096",
}
"""Environment variables."""
