# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets Ray place engines on CPUs: vLLM's CPU platform names no resource for Ray."""

from vllm.platforms import current_platform


def place_engines_by_ray() -> None:
    """Let vLLM ask Ray for two logical CPUs per engine, one for its worker and one for its core."""
    if current_platform.is_cpu():
        current_platform.ray_device_key = "CPU"
