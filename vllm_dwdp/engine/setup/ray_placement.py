# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ray places engines by a platform's resource; vLLM's CPU platform doesn't name any."""

from vllm.platforms import current_platform


def place_engines_by_ray() -> None:
    """Let vLLM ask Ray for logical CPUs: one for an engine's worker and one for its core."""
    if current_platform.is_cpu():
        current_platform.ray_device_key = "CPU"
