# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Imports the compiled core."""


def look() -> str:
    """The name of the core's file."""
    from vllm_dwdp import _core

    return str(_core.__file__).rpartition("/")[2]
