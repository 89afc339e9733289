# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Bound expert weights are shared: every way of vLLM's to write to them refuses with this."""


class ReadOnlyWeight(RuntimeError):
    """Somebody asked to write to expert weights that the group shares read-only."""
