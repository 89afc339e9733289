# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Imports vLLM with its plugins, and says what it finds: see engine/self_check.py."""

from typing import Any


def look() -> dict[str, Any]:
    from vllm_dwdp.engine.self_check import look_at_vllm

    return look_at_vllm()
