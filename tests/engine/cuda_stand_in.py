# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The CUDA driver's calls on host memory, in the order of the calls, for engines on the CPU."""

from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "csrc-tests"
CUDA_STAND_IN = {
    "DWDP_CUDA_LIBRARY": str(BUILD / "libfake_cuda.so"),
    "FAKE_CUDA_RUN_AT_ONCE": "1",
    "FAKE_CUDA_GRANULARITY": "4096",
}
"""Environment variables."""
